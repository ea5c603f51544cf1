"""Positions, interpolation and windows of a grid of patches equal transformers'."""

import numpy as np
import pytest
import torch
from rediprune.runtime.media.qwen_grids import block_order, interpolation, windows
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)


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


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (4, 10), (18, 6), (30, 62)])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_windows_are_transformers(height, width, side):
    rows, lengths, slots = windows(height, width, 2, side)
    assert rows.shape == (len(lengths), side**2 * 4) and rows.dtype == lengths.dtype == slots.dtype == np.int64
    order, ends = get_vision_window_index(torch.tensor([[1, height, width]]), 2, side * 2 * 14, 14)
    own = np.arange(rows.shape[1]) < lengths[:, None]
    assert np.array_equal(rows[own], (order.numpy()[:, None] * 4 + np.arange(4)).ravel())
    assert np.array_equal(np.cumsum(lengths), np.unique(ends.numpy())[1:])
    assert np.array_equal(rows.ravel()[slots], np.arange(height * width))
    assert rows.min() >= 0 and rows.max() < height * width
