"""Grey of more than 8 bits keeps its levels, from files, bytes and Pillow images."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.images import load_image

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def tiff(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pgm(white: int) -> bytes:
    values = np.rint(LEVELS * (white / 255)).astype(">u2")
    return f"P5 16 16 {white}\n".encode() + values.tobytes()


def unsigned_tiff() -> bytes:
    """32-bit unsigned, which Pillow reads but does not write."""
    values = LEVELS.astype("<u4") * 16843009
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[339] = 1
    data = tiff(Image.fromarray(np.zeros((16, 16), np.int32)))
    tags = Image.open(io.BytesIO(data)).tag_v2
    at = tags[273][0]
    data = data[:at] + values.tobytes() + data[at + values.nbytes :]
    entry = data.index((339).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    return data[: entry + 8] + (1).to_bytes(2, "little") + data[entry + 10 :]


SOURCES = {
    "16-bit PNG": png(Image.fromarray(LEVELS.astype(np.uint16) * 257)),
    "16-bit TIFF": tiff(Image.fromarray(LEVELS.astype(np.uint16) * 257)),
    "16-bit PGM": pgm(65535),
    "12-bit PGM": pgm(4095),
    "16 bits in 32": tiff(Image.fromarray(LEVELS.astype(np.int32) * 257)),
    "8 bits in 32": tiff(Image.fromarray(LEVELS.astype(np.int32))),
    "31 bits": tiff(Image.fromarray((LEVELS.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32))),
    "32 bits": unsigned_tiff(),
    "floats to 1": tiff(Image.fromarray((LEVELS / 255).astype(np.float32))),
    "floats to 255": tiff(Image.fromarray(LEVELS.astype(np.float32))),
    "floats to 65535": tiff(Image.fromarray(LEVELS.astype(np.float32) * 257)),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("form", ["file", "bytes", "picture"])
def test_levels_are_kept(tmp_path, name, form):
    (tmp_path / "grey").write_bytes(SOURCES[name])
    image = Image.open(io.BytesIO(SOURCES[name]))
    assert image.mode in ("I", "F", "I;16", "I;16B")
    loaded = load_image({"file": tmp_path / "grey", "bytes": SOURCES[name], "picture": image}[form])
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), LEVELS[:, :, None].repeat(3, 2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_either_byte_order(mode):
    values = LEVELS.astype(">u2" if mode == "I;16B" else "<u2") * 257
    image = Image.frombytes(mode, (16, 16), values.tobytes())
    assert np.array_equal(np.asarray(load_image(image))[:, :, 0], LEVELS)


def test_a_dark_16_bit_picture_stays_dark():
    assert np.asarray(load_image(png(Image.fromarray(np.full((4, 4), 255, np.uint16))))).max() == 1
    assert np.asarray(load_image(b"P5 2 1 65535\n" + b"\0\xff\0\xff")).max() == 1


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (np.full((4, 4), np.nan, np.float32), "finite"),
        (np.array([[0, np.inf]], np.float32), "finite"),
        (np.array([[-0.5, 1]], np.float32), "down to -0.5"),
        (np.array([[0, 3.2]], np.float32), "up to 3.2"),
        (np.array([[0, 1e9]], np.float32), "cannot be told"),
        (np.array([[-1, 5]], np.int32), "down to -1"),
        (np.array([[0, 70_000]], np.int32), "cannot be told"),
    ],
)
def test_what_is_white_must_be_clear(pixels, word):
    for source in (tiff(Image.fromarray(pixels)), Image.fromarray(pixels)):
        with pytest.raises(RedipruneError, match=word):
            load_image(source)


def test_orientation_of_deep_grey():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(LEVELS[:8].astype(np.uint16) * 257).save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_image(buffer.getvalue()))[:, :, 0], np.rot90(LEVELS[:8], -1))


def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in SOURCES.values():
            load_image(data)
