"""Cases are stored whole, read back as they were, and found by what the picture and the video hold."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rediprune.export.validate import stored_cases as store
from rediprune.export.validate.cases import Cases, EndToEndCase, StageCase, StageInput
from rediprune.export.validate.sample_media import sample_clip, sample_picture
from rediprune.export.validate.validate import validate
from rediprune.runtime.bundle import Bundle

CLIP = sample_clip(2)


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Bundle:
    return Bundle.open(bundle_of("llava"))


def cases(frames: int) -> Cases:
    random = np.random.default_rng(0)

    def outputs() -> dict[str, np.ndarray]:
        return {"kept": random.standard_normal((2, 3)), "indices": random.integers(0, 9, (2, 3))}

    one = StageInput("3 of 2 × 9", {"features": random.standard_normal((2, 9, 4)).astype(np.float32)}, real=True)
    request = EndToEndCase(
        "image, K = 1",
        {"keep": 1, "frames": 4},
        ["a picture"],
        [],
        [5, 7],
        random.standard_normal((2, 8)).astype(np.float32),
        [np.full((1, 2), number) for number in range(frames)],
    )
    return Cases({"select": [StageCase(one, outputs(), outputs())]}, [request])


def equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    same = [ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]) for name in theirs]
    return list(ours) == list(theirs) and all(same)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = cases(frames=12)  # more than ten: their order is by number, not by name
    store.save_cases(tmp_path / "a.npz", written)
    read = store.load_cases(tmp_path / "a.npz", "a picture", "a video")
    (ours,), (theirs,) = read.stages["select"], written.stages["select"]
    assert (ours.input.label, ours.input.real) == (theirs.input.label, theirs.input.real)
    assert equal(ours.input.feed, theirs.input.feed)
    assert equal(ours.expected, theirs.expected) and equal(ours.noisy, theirs.noisy)
    (ours,), (theirs,) = read.requests, written.requests
    assert (ours.label, ours.options, ours.token_ids) == (theirs.label, theirs.options, theirs.token_ids)
    assert (ours.images, ours.videos) == (["a picture"], [])
    assert np.array_equal(ours.logits, theirs.logits)
    assert [int(kept[0, 0]) for kept in ours.kept] == list(range(12))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    store.save_cases(path, cases(1))
    before = path.read_bytes()
    broken = cases(1)
    broken.requests[0].logits = np.array([object()])  # no array that can be stored
    with pytest.raises(ValueError, match="allow_pickle"):
        store.save_cases(path, broken)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_the_key_is_of_the_content_not_of_the_name(bundle: Bundle, tmp_path: Path) -> None:
    picture = sample_picture()
    pixels = np.asarray(picture)
    picture.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    same = [picture, pixels, tmp_path / "a.png", str(tmp_path / "a.png"), encoded.getvalue()]
    assert len({store._key(bundle, image, CLIP) for image in same}) == 1

    other = pixels.copy()
    other[128, 128] = 255 - other[128, 128]  # an array is printed with its middle left out
    assert str(other) == str(pixels) and store._key(bundle, other, CLIP) != store._key(bundle, pixels, CLIP)
    before = store._key(bundle, str(tmp_path / "a.png"), CLIP)
    Image.fromarray(other).save(tmp_path / "a.png")  # another picture under the old name
    assert store._key(bundle, str(tmp_path / "a.png"), CLIP) != before

    (tmp_path / "clip.mp4").write_bytes(CLIP)
    assert store._key(bundle, picture, tmp_path / "clip.mp4") == store._key(bundle, picture, CLIP)
    assert store._key(bundle, picture, sample_clip(3)) != store._key(bundle, picture, CLIP)


def test_another_chat_template_is_another_reference(bundle: Bundle) -> None:
    before = store._key(bundle, sample_picture(), CLIP)
    bundle.manifest.files["processor/chat_template.jinja"] = "0" * 64
    assert store._key(bundle, sample_picture(), CLIP) != before


def test_a_damaged_file_is_made_anew(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_of("llava"), folder)
    assert validate(folder, stages=["embed"]).passed
    (file,) = (tmp_path / ".bundle.reference").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + bytes(200) + whole[400:]):
        file.write_bytes(damaged)
        assert validate(folder, stages=["embed"]).passed
        assert store.load_cases(file, None, None).stages.keys() == Bundle.open(folder).manifest.stages.keys()
