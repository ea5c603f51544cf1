"""Pixel values, dialogue and pictures from every kind of source."""

import io
import json
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.processor import Processor, image_key, load_image
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
    VideoLlavaImageProcessor,
)


def photo(width=90, height=60, seed=0):
    """A smooth random picture with some noise on it."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(pixels + random.integers(-9, 9, pixels.shape), 0, 255).astype(np.uint8))


SIZES = [
    (90, 60),
    (60, 90),
    (56, 56),
    (400, 31),
    (31, 400),
    (1, 1),
    (3, 3),
    (3, 500),
    (640, 427),
    (2000, 1500),
]
REFERENCE = {
    ("llava", "clip"): CLIPImageProcessorPil,
    ("llava", "siglip"): SiglipImageProcessorPil,
    ("video_llava", "clip"): VideoLlavaImageProcessor,
    ("llava_next", "clip"): LlavaNextImageProcessorPil,
    ("llava_next_video", "clip"): LlavaNextImageProcessorPil,
    ("llava_next_video", "siglip"): LlavaNextImageProcessorPil,
    ("llava_onevision", "siglip"): LlavaOnevisionImageProcessorPil,
    ("internvl", "intern"): GotOcr2ImageProcessorPil,
    ("smolvlm", "smolvlm"): SmolVLMImageProcessorPil,
    ("idefics3", "smolvlm"): Idefics3ImageProcessorPil,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def get(family, tower=None, decoder=None):
        key = family, tower, decoder
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp("made"), *key)
        return made[key]

    return get


@pytest.mark.parametrize(("family", "tower"), REFERENCE)
@pytest.mark.parametrize("size", SIZES)
def test_pixel_values_equal_transformers_bit_for_bit(checkpoints, family, tower, size):
    folder = checkpoints(family, tower)
    image = photo(*size)
    reference = REFERENCE[family, tower].from_pretrained(folder)
    if family == "video_llava":
        if min(size) <= 3:
            pytest.skip("transformers takes so few rows of pixels for channels")
        expected = reference(image, return_legacy_image_output=False).pixel_values[0]
    elif family == "internvl":  # whose processor asks for tiles, and gives them as pictures
        expected = reference(image, crop_to_patches=True).pixel_values
    else:
        expected = reference(image).pixel_values[0]
    pixels = Processor.load(folder).pixel_values([image])
    assert pixels.dtype == np.float32
    assert pixels.ndim == 4
    assert np.array_equal(pixels, np.asarray(expected, np.float32).reshape(pixels.shape))


def test_several_images_and_frames(checkpoints):
    images = [photo(seed=seed) for seed in range(3)]
    processor = Processor.load(checkpoints("llava"))
    together = processor.pixel_values(images)
    assert together.shape == (3, 3, 112, 112)
    assert np.array_equal(together[2:], processor.pixel_values(images[2:]))
    assert not processor.anyres
    assert processor.layout(images[:1], False, 64) is None
    assert processor.of_images(3) is processor

    tiled = Processor.load(checkpoints("llava_next_video"))
    assert tiled.anyres
    wide, square = photo(300, 60), photo(70, 70)
    pixels = tiled.pixel_values([wide, square])
    assert pixels.shape == (4 + 5, 3, 56, 56)  # base and 1 × 3 tiles, base and 2 × 2 tiles
    assert np.array_equal(pixels[4:], tiled.pixel_values([square]))
    layout = tiled.layout([wide], False, 16)
    assert layout is not None
    assert layout.slots[:16].tolist() == list(range(16))
    assert layout.slots.max() < 4 * 16
    assert tiled.layout(images, True, 4) is None
    assert tiled.pixel_values(images, video=True).shape == (3, 3, 56, 56)
    assert tiled.frames == 8


def test_several_pictures_of_onevision_are_seen_whole(checkpoints):
    folder = checkpoints("llava_onevision")
    processor, images = Processor.load(folder), [photo(300, 60), photo(61, 97)]
    assert processor.of_images(1) is processor
    several = processor.of_images(2)
    expected = LlavaOnevisionImageProcessorPil.from_pretrained(folder)([images]).pixel_values
    assert np.array_equal(several.pixel_values(images), np.concatenate(expected).astype(np.float32))
    layout = several.layout(images[:1], False, 25)
    assert layout is not None and layout.slots.tolist() == [*range(25), -1]
    # A video's frames are squeezed to the tower's size, as `LlavaOnevisionVideoProcessor` does it with torchvision.
    frames = processor.pixel_values(images, video=True)
    squeezed = SiglipImageProcessorPil(size={"height": 70, "width": 70})(images).pixel_values
    assert np.array_equal(frames, np.asarray(squeezed, np.float32))
    layout = processor.layout(images, True, 9)
    assert layout is not None and len(layout.slots) == 2 * 9 + 1


def test_an_aspect_that_is_none_is_refused(checkpoints, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(checkpoints("llava_onevision"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vision_aspect_ratio": "square"}))
    with pytest.raises(
        RedipruneError, match=r"vision_aspect_ratio in config\.json must be like 'anyres_max_9', not 'square'"
    ):
        Processor.load(folder)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_frames_without_video_settings_are_processed_like_pictures(checkpoints, tmp_path, tower):
    folder = tmp_path / "older"
    shutil.copytree(checkpoints("llava_next_video", tower), folder)
    image = photo()
    with_settings = Processor.load(folder).pixel_values([image], video=True)
    (folder / "video_preprocessor_config.json").unlink()
    assert np.array_equal(Processor.load(folder).pixel_values([image], video=True), with_settings)
    reference = CLIPImageProcessorPil if tower == "clip" else SiglipImageProcessorPil
    side = {"height": 56, "width": 56}
    sizes = {"size": {"shortest_edge": 56}, "crop_size": side} if tower == "clip" else {"size": side}
    assert np.array_equal(with_settings[0], reference(**sizes)(image).pixel_values[0])


@pytest.mark.parametrize(("family", "tower"), REFERENCE)
def test_seen_undoes_normalisation(checkpoints, family, tower):
    processor = Processor.load(checkpoints(family, tower))
    side = {"llava": 112, "internvl": 112, "llava_onevision": 70, "smolvlm": 336, "idefics3": 336}.get(family, 56)
    image = photo(side, side)
    first = processor.seen(processor.pixel_values([image]))[0]
    if processor.split is not None:  # whose first tile is a corner; videos are not taken
        assert np.array_equal(first, image.crop((0, 0, 112, 112)))
        return
    assert np.array_equal(first, image)
    assert np.array_equal(processor.seen(processor.pixel_values([image], video=True), video=True)[0], image)


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_settings_nested_in_processor_config(checkpoints, tmp_path, suffix):
    flat = checkpoints("llava_next_video")
    folder = tmp_path / "nested"
    shutil.copytree(flat, folder)
    document = json.loads((folder / "processor_config.json").read_text())
    for key, name in (
        ("image_processor", "preprocessor_config"),
        ("video_processor", "video_preprocessor_config"),
    ):
        document[key] = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").unlink()
    document["image_processor"]["image_processor_type"] += suffix
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    document["chat_template"] = template
    (folder / "processor_config.json").write_text(json.dumps(document))
    one, other = Processor.load(flat), Processor.load(folder)
    image = photo(200, 100)
    assert np.array_equal(one.pixel_values([image]), other.pixel_values([image]))
    assert other.template == template
    assert other.frames == 8


def test_pinpoints_come_from_the_model_config_if_need_be(checkpoints, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(checkpoints("llava_next_video"), folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_grid_pinpoints"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert Processor.load(folder).pixel_values([photo(70, 70)]).shape == (5, 3, 56, 56)


MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}],
    },
    {"role": "assistant", "content": "A cup."},
    {"role": "user", "content": "And left of it?"},
]


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ("llama", "USER: <image>\n<image>\nWhat is it? ASSISTANT: A cup. USER: And left of it? ASSISTANT:"),
        (
            "qwen2",
            "<|im_start|>user\n<image>\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cup."
            "<|im_end|>\n<|im_start|>user\nAnd left of it?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_dialogue(checkpoints, decoder, expected):
    processor = Processor.load(checkpoints("llava", decoder=decoder))
    text = processor.render(MESSAGES)
    assert text == expected
    assert len(processor.render(MESSAGES, add_generation_prompt=False)) < len(text)
    ids = processor.encode(text)
    assert ids.count(processor.image_token_id) == 2
    assert processor.video_token_id is None or processor.video_token_id not in ids
    assert (ids[0] == processor.tokenizer.bos_token_id) == (decoder == "llama")
    assert "What is it?" in processor.decode(ids)
    assert "<" not in processor.decode(ids)


def test_opening_token_is_not_doubled(checkpoints):
    processor = Processor.load(checkpoints("llava"))
    assert processor.encode("<s>Yes.").count(1) == processor.encode("Yes.").count(1) == 1


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json"])
def test_chat_template_of_older_checkpoints(checkpoints, tmp_path, name):
    folder = tmp_path / "older"
    shutil.copytree(checkpoints("video_llava"), folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    document = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(document | {"chat_template": template}))
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}
    assert Processor.load(folder).render([message]) == "USER: <video>\nWhy? ASSISTANT:"


def test_generation_config(checkpoints):
    assert Processor.load(checkpoints("llava")).generation["eos_token_id"] == 2


def refused(call, *told):
    with pytest.raises(RedipruneError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in told), message


def test_incomplete_or_damaged_processor_files_are_refused(checkpoints, tmp_path):
    refused(lambda: Processor.load(tmp_path / "absent"), "no folder", "absent")
    for name, damage, told in [
        ("preprocessor_config.json", None, "no preprocessor_config.json"),
        ("preprocessor_config.json", "{", "preprocessor_config.json cannot be read"),
        ("preprocessor_config.json", "[1]", "no JSON object"),
        ("preprocessor_config.json", '{"image_processor_type": "ViTImageProcessor"}', "ViTImageProcessor"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", '{"version": "1.0"}', "tokenizer"),
        ("generation_config.json", "no", "generation_config.json"),
    ]:
        folder = tmp_path / "damaged"
        shutil.copytree(checkpoints("llava"), folder)
        if damage is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(damage)
        refused(lambda folder=folder: Processor.load(folder), told)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("file", "changes", "word"),
    [
        ("processor_config.json", {"image_token": 5}, "image_token or video_token in .* must be a text"),
        ("processor_config.json", {"patch_size": "14"}, "patch_size in .* must be a whole number above 0"),
        ("video_preprocessor_config.json", {"num_frames": {}}, "num_frames in .* must be a whole number from 1"),
        ("video_preprocessor_config.json", {"num_frames": 10**12}, "num_frames in .* must be a whole number from 1"),
        ("preprocessor_config.json", {"image_processor_type": {"a": 1}}, "is not supported: use one of"),
        ("preprocessor_config.json", {"size": {"shortest_edge": -1}}, "settings cannot be used|whole numbers from 1"),
    ],
)
def test_processor_settings_of_another_form_are_refused(checkpoints, tmp_path, file, changes, word):
    folder = shutil.copytree(checkpoints("llava_next_video"), tmp_path / "checkpoint")
    base = {} if file == "processor_config.json" else json.loads((folder / "preprocessor_config.json").read_text())
    there = json.loads((folder / file).read_text()) if (folder / file).is_file() else base
    (folder / file).write_text(json.dumps(there | changes))
    with pytest.raises(RedipruneError, match=word):
        Processor.load(folder)


def test_a_template_that_refuses_is_heard(checkpoints, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(checkpoints("llava"), folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    refused(lambda: Processor.load(folder).render(MESSAGES), "roles must alternate")


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_every_source_gives_the_same_picture(tmp_path):
    image = photo()
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert np.array_equal(loaded, image)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = photo().convert("L" if mode == "I;16" else mode if mode != "LA" else "L").convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    loaded = load_image(data)
    assert loaded.mode == "RGB"
    assert loaded.size == (90, 60)


def test_transparency_is_laid_over_white_as_transformers_does():
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    reference = CLIPImageProcessorPil()
    assert np.array_equal(reference(load_image(encoded(image))).pixel_values[0], reference(image).pixel_values[0])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    data = encoded(palette, transparency=1)
    assert load_image(data).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("shape", [(60, 90), (60, 90, 1), (60, 90, 4)])
def test_arrays(shape):
    loaded = load_image(np.full(shape, 255, np.uint8))
    assert loaded.size == (90, 60)
    assert loaded.getpixel((3, 3)) == (255, 255, 255)


def test_exif_orientation_is_honoured():
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    loaded = load_image(encoded(image, exif=exif))
    assert np.array_equal(loaded, image.rotate(-90, expand=True))


def test_key_covers_size_and_pixels():
    image = photo()
    assert image_key(image) == image_key(load_image(encoded(image)))
    changed = image.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    flat = Image.fromarray(np.asarray(image).reshape(90, 60, 3))
    assert len({image_key(image), image_key(changed), image_key(flat)}) == 3


def test_one_pixel_works(checkpoints):
    image = load_image(encoded(Image.new("RGB", (1, 1), "red")))
    assert Processor.load(checkpoints("llava")).pixel_values([image]).shape == (1, 3, 112, 112)


def test_what_is_no_picture_is_refused(tmp_path):
    refused(lambda: load_image(tmp_path / "absent.png"), "no file", "absent.png")
    refused(lambda: load_image(tmp_path), "cannot be read")
    (tmp_path / "text.jpg").write_text("not a picture")
    refused(lambda: load_image(tmp_path / "text.jpg"), "text.jpg", "not a picture")
    (tmp_path / "empty.jpg").touch()
    refused(lambda: load_image(tmp_path / "empty.jpg"), "empty.jpg", "is empty")
    refused(lambda: load_image(b""), "is empty")
    for form in ("JPEG", "PNG"):
        (tmp_path / "half").write_bytes(encoded(photo(), form)[:700])
        refused(lambda: load_image(tmp_path / "half"), "half", "damaged")
    refused(lambda: load_image(17), "int")
    refused(lambda: load_image(np.zeros((4, 4, 3))), "uint8")
    refused(lambda: load_image(np.zeros((4, 4, 2), np.uint8)), "[4, 4, 2]")
    refused(lambda: load_image(np.zeros((0, 4, 3), np.uint8)), "[0, 4, 3]")


def test_huge_pictures(checkpoints):
    processor = Processor.load(checkpoints("llava"))
    wide = load_image(encoded(Image.new("L", (20_000, 1_000), 77)))
    assert wide.size == (20_000, 1_000)
    assert processor.pixel_values([wide]).shape == (1, 3, 112, 112)

    panorama = encoded(Image.new("L", (20_000, 5_000), 77), "JPEG")
    tracemalloc.start()
    shrunk = load_image(panorama)
    assert tracemalloc.get_traced_memory()[1] < 250e6
    tracemalloc.stop()
    assert shrunk.size == (10_000, 2_500)
    assert shrunk.getpixel((0, 0)) == (77, 77, 77)

    refused(lambda: load_image(encoded(Image.new("1", (20_000, 5_000)))), "20000 × 5000", "50 million")
    refused(lambda: load_image(encoded(Image.new("1", (20_000, 10_000)))), "million pixels")
    refused(lambda: load_image(Image.new("1", (20_000, 2))), "20000 × 2", "crop")


def test_without_torch(checkpoints):
    """The same pixel values where torch is not installed: a finder hides it from a fresh interpreter."""
    folder = checkpoints("llava_next_video")
    script = f"""
import importlib.util, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(name)
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in ("torch", "torchvision") else found(name, package)
)
sys.meta_path.insert(0, Hide())
from rediprune.runtime.media.processor import Processor, image_key, load_image
import rediprune.runtime.pipeline
import hashlib
image = load_image({str(folder / "photo.png")!r})
processor = Processor.load({str(folder)!r})
print(hashlib.sha256(processor.pixel_values([image]).tobytes()).hexdigest())
print(processor.encode(processor.render([dict(role="user", content="Why?")])))
assert "torch" not in sys.modules
assert "av" not in sys.modules  # FFmpeg, which only videos need
"""
    photo().save(folder / "photo.png")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    import hashlib

    processor = Processor.load(folder)
    pixels = processor.pixel_values([photo()])
    ids = processor.encode(processor.render([{"role": "user", "content": "Why?"}]))
    assert run.stdout.split("\n")[:2] == [hashlib.sha256(pixels.tobytes()).hexdigest(), str(ids)]
