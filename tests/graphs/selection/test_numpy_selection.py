"""The selection in numpy equals the one in torch; `test_reference` holds both to the literal method."""

import math

import numpy as np
import pytest
import torch
from rediprune.graphs.selection import numpy_selection, query_vector, reference


@pytest.mark.parametrize(("depth", "channels"), [(48, 48), (48, 32), (64, 32), (32, 80), (4096, 1024), (7, 3), (1, 5)])
@pytest.mark.parametrize("length", [0, 1, 2, 17])
def test_pools_the_query_as_torch(depth, channels, length):
    embeds = np.random.default_rng(length).standard_normal((length, depth)).astype(np.float32)
    expected = query_vector.match_width(query_vector.pool_query(torch.from_numpy(embeds)), channels).numpy()
    ours = numpy_selection.match_width(numpy_selection.pool_query(embeds), channels)
    assert ours.dtype == np.float32 and ours.shape == (channels,)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_one_token_is_the_query():
    row = np.random.default_rng(0).standard_normal((1, 9)).astype(np.float32)
    assert np.array_equal(numpy_selection.pool_query(row), row[0])


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), ()])
def test_refuses_embeddings_of_other_shapes(shape):
    with pytest.raises(ValueError, match=r"embeds must be \[L, D\]"):
        numpy_selection.pool_query(np.ones(shape))


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("tau", [0.3, 5.0])
def test_drops_tokens_as_torch(count, tau):
    relevance = np.random.default_rng(0).standard_normal((3, 36)).round(1).astype(np.float32)
    tensor = torch.from_numpy(relevance)
    expected = reference.drop_below(tensor, reference.candidate_counts(tensor, count, tau)).numpy()
    ours = numpy_selection.drop_below(relevance, numpy_selection.candidate_counts(relevance, count, tau))
    assert ours.dtype == np.float32
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_chooses_as_torch_on_the_same_scores(alpha):
    random = np.random.default_rng(1)
    for patches in (1, 2, 30):
        similarity = random.integers(-2, 3, (4, patches, patches)).astype(np.float32) / 2
        relevance = random.integers(-2, 3, (4, patches)).astype(np.float32) / 2
        relevance[:, patches // 2 + 1 :] = -np.inf
        for count in {1, patches // 2 + 1}:
            expected = reference.max_min_select(torch.tensor(similarity), torch.tensor(relevance), count, alpha)
            assert np.array_equal(numpy_selection.max_min_select(similarity, relevance, count, alpha), expected)


def test_one_frame_and_float16():
    features = np.random.default_rng(2).standard_normal((2, 20, 8)).astype(np.float16)
    kept = numpy_selection.select_tokens(features, features[0, 3], 5)
    assert kept.shape == (2, 5)
    assert np.array_equal(numpy_selection.select_tokens(features[1], features[0, 3], 5), kept[1])
    assert np.array_equal(kept, reference.select_tokens(torch.tensor(features), torch.tensor(features[0, 3]), 5))


@pytest.mark.parametrize("keep", [1.0, 9])
def test_all_kept_is_the_identity(keep):
    assert numpy_selection.select_tokens(np.zeros((2, 9, 4)), np.zeros(4), keep).tolist() == [list(range(9))] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(4), np.ones(4)), r"features must be"),
        ((np.ones((10, 4)), np.ones((1, 4))), r"query must be"),
        ((np.ones((10, 0)), np.ones(4)), "must not be empty"),
        ((np.ones((10, 4)), np.ones(4), 1.5), "keep as a ratio"),
        ((np.ones((10, 4)), np.ones(4), 0.5, -1.0), "alpha must be"),
        ((np.ones((10, 4)), np.ones(4), 0.5, 0.5, math.nan), "tau must be"),
    ],
)
def test_refuses_what_torch_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        numpy_selection.select_tokens(*arguments)
    tensors = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
    with pytest.raises(ValueError, match=message):
        reference.select_tokens(*tensors)
