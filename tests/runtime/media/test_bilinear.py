"""Interpolation of tokens equals PyTorch's."""

import numpy as np
import pytest
import torch
from rediprune.runtime.media.bilinear import Mix, interpolated


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((27, 27), (14, 14)),
        ((5, 5), (3, 3)),
        ((4, 4), (2, 2)),
        ((1, 1), (1, 1)),
        ((20, 13), (11, 7)),
        ((81, 54), (60, 40)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equals_torch(old, new, dtype):
    grid = torch.randn(1, 8, *old, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(grid, size=new, mode="bilinear")[0].flatten(1).T
    tokens = grid[0].flatten(1).T.numpy().astype(dtype)
    mixed = interpolated(old, new).of(tokens)
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed, expected, atol=1e-5 if dtype == np.float32 else 5e-3)


def test_mixes_are_of_tokens_that_are_there_and_whole():
    mix = interpolated((27, 27), (14, 14))
    assert mix.sources.shape == mix.weights.shape == (196, 4)
    assert mix.sources.min() == 0 and mix.sources.max() == 27 * 27 - 1
    np.testing.assert_allclose(mix.weights.sum(1), 1, atol=1e-6)


def test_a_mix_by_hand():
    mix = Mix(np.array([[0, 1, 2, 2]]), np.array([[0.5, 0.25, 0.25, 0.0]], np.float32))
    assert mix.of(np.array([[2.0], [4.0], [8.0]], np.float32)).tolist() == [[4.0]]
