"""Pixels, sizes and positions of Qwen-VL equal transformers'; the video's too, without torchvision."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.runtime import RedipruneError
from rediprune.runtime.media.processor import Processor
from rediprune.runtime.media.qwen_pictures import QwenForm, fitted_frames, fitted_picture
from rediprune.runtime.media.video import load_video
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from .test_processor import photo

SIZES = [(90, 60), (61, 97), (32, 32), (400, 31), (31, 400), (1, 1), (3, 3), (640, 427), (2000, 1500)]


def video_smart_resize():
    """transformers' function, whose module cannot be imported without torchvision."""
    path = Path(transformers.__file__).parent / "models/qwen3_vl/video_processing_qwen3_vl.py"
    tree = ast.parse(path.read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "smart_resize"]
    scope = {"math": math}
    exec(compile(ast.Module([function], []), str(path), "exec"), scope)
    return scope["smart_resize"]


@pytest.fixture(scope="module")
def checkpoint_named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {family: make_checkpoint(folder / family, family) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}


@pytest.fixture(scope="module")
def checkpoint(checkpoint_named):
    return checkpoint_named["qwen3_vl"]


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.load(checkpoint)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("family", "side"), [("qwen2_vl", 14), ("qwen2_5_vl", 14), ("qwen3_vl", 16)])
def test_pixels_of_a_picture_are_transformers_bit_for_bit(checkpoint_named, family, side, size):
    checkpoint = checkpoint_named[family]
    processor, image = Processor.load(checkpoint), photo(*size)
    expected = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)(image)
    inputs = processor.vision_inputs([image])
    pixels = inputs["pixel_values"]
    assert pixels.dtype == np.float32 and pixels.shape[0] == 1 and pixels.shape[2] == 4
    assert np.array_equal(pixels.reshape(-1, pixels.shape[3]), np.asarray(expected.pixel_values, np.float32))
    _, height, width = np.asarray(expected.image_grid_thw)[0]
    assert processor.grid([image]) == (height // 2, width // 2)
    assert pixels.shape[1] == height * width // 4
    (shown,) = processor.shown([image])
    assert shown.size == (width * side, height * side)


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    least=st.integers(1, 10**5),
    most=st.integers(10**5, 10**7),
    frames=st.integers(2, 40),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_sizes_are_transformers(size, least, most, frames):
    theirs = video_smart_resize()

    def compare(ours, function, *args, **keywords):
        try:
            expected = function(*args, **keywords)
        except ValueError:
            with pytest.raises(RedipruneError, match="too elongated"):
                ours()
        else:
            assert ours() == expected

    compare(lambda: fitted_picture(size, 32, least, most), smart_resize, *size, 32, least, most)
    compare(lambda: fitted_frames(frames, size, 32, 2, least, most), theirs, frames, *size, 2, 32, least, most)


def test_frames_of_a_video_go_in_pairs(processor, clip):
    frames = load_video(clip, 5)
    inputs = processor.vision_inputs(frames, True)
    rows, columns = processor.grid(frames, True)
    assert inputs["pixel_values"].shape == (3, rows * columns, 4, 3 * 2 * 16 * 16)
    # A still picture is its own pair: both halves are the picture's.
    still = processor.vision_inputs([frames[0]] * 2, True)["pixel_values"]
    fitted = frames[0].resize(
        (processor.grid([frames[0]] * 2, True)[1] * 32, processor.grid([frames[0]] * 2, True)[0] * 32)
    )
    halves = still.reshape(-1, 3, 2, 256)
    assert np.array_equal(halves[:, :, 0], halves[:, :, 1])
    expected = processor.images(fitted, do_resize=False).pixel_values
    assert np.array_equal(still.reshape(-1, still.shape[3]), np.asarray(expected, np.float32))
    # Of different frames each is in its half, an odd last one in both.
    halves = inputs["pixel_values"].reshape(3, -1, 3, 2, 256)
    assert not np.array_equal(halves[0, :, :, 0], halves[0, :, :, 1])
    assert np.array_equal(halves[2, :, :, 0], halves[2, :, :, 1])
    assert len(processor.shown(frames, True)) == 3


def test_times_of_frames(processor, clip):
    frames = load_video(clip, 5)
    times = [frame.info["seconds"] for frame in frames]
    assert times[0] == 0 and times == sorted(times) and times[-1] > 0.5
    middles = [(times[0] + times[1]) / 2, (times[2] + times[3]) / 2, times[4]]
    assert processor.qwen.seconds(frames) == middles
    text = processor.expansion("video", frames)
    assert text.startswith(
        f"<{middles[0]:.1f} seconds><|vision_start|><|video_pad|><|vision_end|><{middles[1]:.1f} seconds>"
    )
    rendered = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What?"
    expanded, parts = processor.expand(rendered, [("video", frames)])
    assert parts == [3] and expanded == f"<|im_start|>user\n{text}What?"  # the marks around it are the frames' own


def test_a_video_of_one_frame_is_refused(processor):
    with pytest.raises(RedipruneError, match="needs 2 frames at least here, not 1"):
        processor.vision_inputs([Image.new("RGB", (64, 64))], True)


# ------------------------------------------------------------------------------------------- Qwen2-VL and Qwen2.5-VL


@pytest.fixture(scope="module")
def windowed(checkpoint_named):
    return Processor.load(checkpoint_named["qwen2_5_vl"])


def test_each_frame_of_a_video_has_the_size_of_a_picture(windowed, clip):
    for count in (2, 5, 40):
        frames = load_video(clip, count)
        least, most = windowed.qwen.videos
        height, width = smart_resize(frames[0].height, frames[0].width, 28, least, most)
        assert windowed.grid(frames, True) == (height // 28, width // 28)
        inputs = windowed.vision_inputs(frames, True)
        assert len(inputs["pixel_values"]) == -(-count // 2)
        assert set(inputs) == {"pixel_values", "positions", "window_patches", "window_lengths", "window_slots"}


def test_a_still_video_is_a_picture(windowed, checkpoint_named):
    image = photo(90, 60)
    expected = Qwen2VLImageProcessorPil.from_pretrained(checkpoint_named["qwen2_5_vl"])(image).pixel_values
    pixels = windowed.vision_inputs([image, image], True)["pixel_values"]
    assert np.array_equal(pixels.reshape(-1, pixels.shape[3]), np.asarray(expected, np.float32))


def test_positions_in_time_follow_the_seconds(windowed, checkpoint_named, clip):
    frames = load_video(clip, 4)
    seconds = frames[0].info["film_seconds"]
    assert seconds > frames[-1].info["seconds"]
    # transformers: temporal_patch_size / sampled_fps, and the sampled rate is frames taken / seconds of the film.
    assert windowed.qwen.seconds_apart(frames) == pytest.approx(2 / (4 / seconds))
    assert windowed.pace(frames, True) == pytest.approx(2 * 2 / (4 / seconds))  # two positions a second
    assert windowed.pace(frames[:1], False) == 1
    assert Processor.load(checkpoint_named["qwen2_vl"]).pace(frames, True) == 1


def test_a_video_has_one_placeholder(windowed, clip):
    frames = load_video(clip, 5)
    rendered = "<|vision_start|><|video_pad|><|vision_end|>What?"
    assert windowed.expand(rendered, [("video", frames)]) == (rendered, [1])


def test_bounds_of_videos_without_a_file_of_their_own_are_those_of_pictures(windowed):
    assert windowed.qwen.videos == windowed.qwen.pictures == (4 * 28 * 28, 40 * 28 * 28)


def test_forms():
    usual = QwenForm.of("qwen2_5_vl", {})
    assert usual is not None and (usual.window, usual.speed, usual.side) == (4, 4, None)
    assert QwenForm.of("llava", {}) is None


# ------------------------------------------------------------------------------------------------ bounds of a request


def test_a_request_bounds_the_pixels(processor):
    image = photo(640, 427)
    for least, most in ((None, 8 * 1024), (16 * 1024, 20 * 1024), (30 * 1024, None)):
        sized = processor.sized(least, most)
        rows, columns = sized.grid([image])
        usual = processor.qwen.pictures
        height, width = smart_resize(427, 640, 32, least or usual[0], most or usual[1])
        assert (rows * 32, columns * 32) == (height, width)
        assert sized.vision_inputs([image])["pixel_values"].shape[1] == rows * columns
    assert processor.sized(None, None) is processor


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ((None, 10**9), "must be at most what the checkpoint has for a video, 98,304 pixels, not 1,000,000,000"),
        ((10**9, None), "must be at most"),
        ((40 * 1024, 20 * 1024), "is above max_pixels"),
        ((None, 1024), "min_pixels, 8,192, is above max_pixels, 1,024: give both"),
    ],
)
def test_bounds_that_cannot_be(processor, bounds, says):
    with pytest.raises(RedipruneError, match=says):
        processor.sized(*bounds)


def test_pictures_of_one_size_have_no_bounds(tmp_path):
    other = Processor.load(make_checkpoint(tmp_path / "llava", "llava"))
    with pytest.raises(RedipruneError, match="for families whose pictures have any size"):
        other.sized(1, 2)
