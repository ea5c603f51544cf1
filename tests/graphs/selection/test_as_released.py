"""The restated release, in float64, chooses what `select_tokens` does wherever a choice is clear."""

import numpy as np
import pytest
import torch
from rediprune.graphs.selection.as_released import release_select
from rediprune.graphs.selection.reference import select_tokens


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_select_tokens_chooses_as_the_release(alpha, tau):
    random = np.random.default_rng([int(alpha * 10), int(tau * 10)])
    for _ in range(40):
        patches = int(random.integers(2, 40))
        features = torch.from_numpy(random.standard_normal((2, patches, 24)) + random.choice([0.0, 0.5]))
        query = torch.from_numpy(random.standard_normal(24) + random.choice([0.0, 0.5]))
        count = int(random.integers(1, patches + 1))
        released = torch.stack(release_select(features, query, count, alpha, tau))
        assert torch.equal(select_tokens(features, query, count, alpha, tau), released)


def test_near_duplicates_by_the_release():
    """24 tokens in six noisy copies each: all 24 picks of `select_tokens` are the release's."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        features = np.repeat(random.standard_normal((1, 24, 24)), 6, axis=1)
        features = torch.from_numpy((features + 1e-3 * random.standard_normal((1, 144, 24))).astype(np.float32))
        query = torch.from_numpy(random.standard_normal(24).astype(np.float32))
        released = release_select(features.double(), query.double(), 24)
        assert torch.equal(select_tokens(features, query, 24), torch.stack(released))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_works_in_the_precision_of_its_inputs(dtype):
    features = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = release_select(features, features[0, 0], 5)
    assert [frame.dtype for frame in kept] == [torch.int64] * 3
    assert all((frame.diff() > 0).all() and len(frame) == 5 for frame in kept)
    assert torch.equal(torch.stack(release_select(features, features[0, 0], 20)), torch.arange(20).expand(3, 20))
