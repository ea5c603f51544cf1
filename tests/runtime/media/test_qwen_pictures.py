"""Pixels, sizes and positions of Qwen-VL equal transformers'; the video's too, without torchvision."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.runtime import RedipruneError
from rediprune.runtime.media.preprocess import Processor, load_video
from rediprune.runtime.media.qwen_pictures import block_order, fitted_frames, fitted_picture, interpolation
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from .test_preprocess import photo

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
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("made") / "qwen3_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.load(checkpoint)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_a_picture_are_transformers_bit_for_bit(checkpoint, processor, size):
    image = photo(*size)
    expected = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)(image)
    inputs = processor.vision_inputs([image])
    pixels = inputs["pixel_values"]
    assert pixels.dtype == np.float32 and pixels.shape[0] == 1 and pixels.shape[2] == 4
    assert np.array_equal(pixels.reshape(-1, pixels.shape[3]), np.asarray(expected.pixel_values, np.float32))
    _, height, width = np.asarray(expected.image_grid_thw)[0]
    assert processor.grid([image]) == (height // 2, width // 2)
    assert pixels.shape[1] == height * width // 4
    (shown,) = processor.shown([image])
    assert shown.size == (width * 16, height * 16)


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


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 10), (12, 6), (48, 48), (30, 62)])
def test_positions_and_interpolation_are_transformers(height, width):
    grid = torch.tensor([[1, height, width]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=6, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    ours = interpolation(height, width, 2, 6)
    assert np.array_equal(ours[0], indices.numpy())
    np.testing.assert_allclose(ours[1], weights.numpy(), atol=1e-6)
    assert np.array_equal(np.stack(block_order(height, width, 2), -1), get_vision_position_ids(grid, 2).numpy())


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
