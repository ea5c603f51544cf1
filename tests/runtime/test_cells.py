"""Cells: what is left of a projected grid that is scaled down, computed for the kept ones alone."""

import numpy as np
import pytest
import torch
from rediprune.runtime.cells import KeptCells
from torch.nn.functional import interpolate


@pytest.mark.parametrize("side", [5, 6, 27])
@pytest.mark.parametrize("count", [1, 3, None])
def test_mixed_behind_a_projector_they_are_those_of_the_whole_grid(side, count):
    cells = -(-side // 2)
    random = np.random.default_rng(0)
    features = random.standard_normal((2, side**2, 6)).astype(np.float32)
    weight = random.standard_normal((6, 4)).astype(np.float32)

    def project(tokens):
        return np.maximum(tokens @ weight, 0)

    projected = torch.from_numpy(project(features)).transpose(1, 2).reshape(2, 4, side, side)
    expected = interpolate(projected, size=(cells, cells), mode="bilinear").flatten(2).transpose(1, 2).numpy()
    chosen = [np.sort(random.permutation(cells**2)[:count]) for _ in range(2)]
    kept = KeptCells.of(np.stack(chosen), (cells, cells), side**2)
    assert kept.patches.shape[1] <= min(side**2, 4 * len(chosen[0]))
    mixed = kept.mixed(project(kept.gathered(features)))
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, np.stack([expected[f, row] for f, row in enumerate(chosen)]), atol=1e-5)


def test_frames_with_fewer_patches_repeat_their_last():
    kept = KeptCells.of(np.array([[1, 2], [0, 8]]), (3, 3), 25)  # neighbours share patches
    first, second = kept.patches
    assert len(set(first)) < len(set(second)) == len(second)
    assert (first[len(set(first)) :] == max(first)).all()
