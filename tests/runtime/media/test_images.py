"""Pictures of every format that is named and no other, and with metadata of any kind."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.images import load_image


def picture(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "JPEG", "MPO"])
def test_formats_that_are_named(form):
    options = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 95, "subsampling": 0},
        "MPO": {"save_all": True, "append_images": [picture().rotate(180)], "quality": 95, "subsampling": 0},
    }
    loaded = load_image(encoded(picture(), form, **options.get(form, {})))
    difference = np.abs(np.asarray(loaded, int) - np.asarray(picture(), int)).max()
    assert difference <= {"JPEG": 8, "MPO": 8}.get(form, 0)


@pytest.mark.parametrize("form", ["EPS", "PCX", "TGA", "ICO", "JPEG2000", "SGI", "DDS", "ICNS", "PDF", "AVIF", "IM"])
def test_other_formats_are_refused(tmp_path, form):
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    (tmp_path / "a.png").write_bytes(encoded(picture(32, 32), form))
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        with pytest.raises(RedipruneError, match="not a picture that is read here: give a JPEG, PNG, WebP"):
            load_image(source)


def test_no_picture_starts_a_program(monkeypatch):
    data = encoded(picture(), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript"))
    with pytest.raises(RedipruneError, match="not a picture"):
        load_image(data)


def test_what_pillow_says_is_not_echoed(tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(picture(400, 400), "PNG")[:300])
    with pytest.raises(RedipruneError) as caught:
        load_image(tmp_path / "half.png")
    assert str(caught.value) == f"{tmp_path / 'half.png'} is damaged or not whole: save it again, or fetch it anew"


def test_pillow_images_are_checked_like_files():
    half = Image.open(io.BytesIO(encoded(picture(400, 400), "PNG")[:300]))
    with pytest.raises(RedipruneError, match="the image is damaged"):
        load_image(half)
    with pytest.raises(RedipruneError, match="no pixels"):
        load_image(Image.new("RGB", (0, 0)))
    with pytest.raises(RedipruneError, match="CIELAB"):
        load_image(Image.new("LAB", (4, 4)))
    closed = Image.open(io.BytesIO(encoded(picture(), "PNG")))
    closed.close()
    with pytest.raises(RedipruneError, match="damaged"):
        load_image(closed)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_of_pillow(mode):
    assert load_image(Image.new(mode, (8, 6))).mode == "RGB"


@pytest.mark.parametrize(("mode", "white"), [("LA", (200, 255)), ("La", (200, 255)), ("RGBa", (200, 200, 200, 255))])
def test_opaque_grey_stays_what_it_is(mode, white):
    assert load_image(Image.new(mode, (2, 2), white)).getpixel((0, 0)) == (200, 200, 200)
    assert load_image(Image.new(mode, (2, 2), 0)).getpixel((0, 0)) == (255, 255, 255)


def test_arrays_of_16_bits_and_of_floats():
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    assert np.array_equal(np.asarray(load_image(levels))[:, :, 1], levels >> 8)
    colours = np.stack([levels, levels[::-1], levels.T], axis=2)
    assert np.array_equal(np.asarray(load_image(colours)), colours >> 8)
    assert np.array_equal(load_image(levels.astype(">u2")), load_image(levels))
    for dtype in (np.float32, np.float64, np.float16):
        with pytest.raises(RedipruneError, match="uint8 or uint16, not float"):
            load_image(np.ones((4, 4), dtype))
    for wrong in (
        np.zeros((4, 4), bool),
        np.zeros((4, 4), np.int16),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ):
        with pytest.raises(RedipruneError, match="must be uint8 or uint16"):
            load_image(wrong)


@pytest.mark.parametrize("orientation", range(0, 10))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_pillows(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(load_image(data), reference)


def jpeg_with(exif: bytes) -> bytes:
    data = encoded(picture(), "JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def png_with(chunk: bytes, exif: bytes) -> bytes:
    data = encoded(picture(), "PNG")
    body = chunk + exif
    return data[:33] + struct.pack(">I", len(exif)) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def test_a_turn_is_read_past_a_broken_neighbour():
    tags = struct.pack("<H", 2) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHIi", 0x100, 9, 1, -5)
    data = jpeg_with(b"Exif\0\0II*\0\x08\0\0\0" + tags + bytes(4))
    assert np.array_equal(load_image(data), load_image(jpeg_with(b"")).transpose(Image.Transpose.ROTATE_270))


def test_exif_as_a_text_of_png():
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n      12\n45786966000049492a000800\n")
    assert np.array_equal(load_image(encoded(picture(), "PNG", pnginfo=info)), picture())


# Tags with a type, a count and a value of any kind, the orientation among them, behind a header that is often right.
TAGS = st.lists(
    st.builds(
        lambda tag, kind, count, value: struct.pack("<HHII", tag, kind, count, value),
        st.sampled_from([0x112, 0x100, 0x11A, 0x8769, 0x8825, 0xA005, 0x927C, 0x2BC, 0]),
        st.integers(0, 14),
        st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
        st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
    ),
    max_size=6,
)
EXIF = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda tags, count, rest: (
            b"Exif\0\0II*\0\x08\0\0\0"
            + struct.pack("<H", len(tags) if count is None else count)
            + b"".join(tags)
            + rest
        ),
        *(TAGS, st.one_of(st.none(), st.integers(0, 65535)), st.binary(max_size=60)),
    ),
)


def tiff_with(tags: list[bytes], rest: bytes) -> bytes:
    """A new directory behind the picture: its own tags and others."""
    data = bytearray(encoded(picture(), "TIFF"))
    at = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[at : at + 2])[0]
    own = data[at + 2 : at + 2 + 12 * count]
    data[4:8] = struct.pack("<I", len(data))
    return bytes(data + struct.pack("<H", count + len(tags)) + own + b"".join(tags) + bytes(4) + rest)


@pytest.mark.parametrize("pointer", [0x8769, 0x8825, 0xA005])
@pytest.mark.parametrize("kind", range(1, 14))
@pytest.mark.parametrize("value", [0, 7, 100_000, 2**32 - 1])
def test_a_tiff_whose_exif_points_to_nothing(pointer, kind, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_image(tiff_with([struct.pack("<HHII", pointer, kind, 1, value)], bytes(range(60))))
    assert np.array_equal(loaded, picture())


@given(tags=TAGS, rest=st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_tiff_with_odd_tags_is_read_or_refused(tags, rest):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_image(tiff_with(tags, rest)).mode == "RGB"
    except RedipruneError as error:
        assert "\n" not in str(error)


@given(exif=EXIF)
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "text"])
def test_exif_of_any_bytes_costs_nothing_but_the_turn(form, exif):
    if form == "jpeg":
        data, plain = jpeg_with(exif), jpeg_with(b"")
    elif form == "png":
        data, plain = png_with(b"eXIf", exif.removeprefix(b"Exif\0\0")), encoded(picture(), "PNG")
    elif form == "webp":
        plain = encoded(picture(), "WEBP", lossless=True)
        data = encoded(picture(), "WEBP", lossless=True, exif=exif)
    else:
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
        data, plain = encoded(picture(), "PNG", pnginfo=info), encoded(picture(), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is corrupt
        loaded = load_image(data)
    upright = load_image(plain)
    turned = [upright, *(upright.transpose(turn) for turn in Image.Transpose)]
    assert any(np.array_equal(loaded, way) for way in turned)


def test_many_threads_read_at_once():
    data = [encoded(picture(), form) for form in ("PNG", "BMP", "TIFF")]
    seen: list[bool] = []

    def read() -> None:
        seen.extend(np.array_equal(load_image(data[at % 3]), picture()) for at in range(60))

    before = list(warnings.filters)
    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 360 and all(seen)
    assert warnings.filters == before
