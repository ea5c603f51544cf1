"""The query vector equals the formula in float64; the prompt tokens that make it are the right ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.graphs.selection.counts import QUERY_TOKENS, query_ids
from rediprune.graphs.selection.query_vector import match_width, pool_queries, pool_query

IMAGE, VIDEO = 1000, 1001


def formula(embeds):
    """The query in float64, sum by sum."""
    embeds = np.asarray(embeds, np.float64)
    length, depth = embeds.shape
    if length == 0:
        return np.zeros(depth)
    if length == 1:
        return embeds[0]
    unit = [row / max(np.sqrt((row**2).sum()), 1e-12) for row in embeds]
    mixed = []
    for a in unit:
        power = np.array([np.exp(a @ b) for b in unit])
        mixed.append(sum(p * row for p, row in zip(power / power.sum(), embeds, strict=True)))
    weights = np.array([np.exp(3 * i / (length - 1)) for i in range(length)])
    return sum(w * row for w, row in zip(weights / weights.sum(), mixed, strict=True))


@pytest.mark.parametrize("depth", [1, 5, 64])
@pytest.mark.parametrize("length", [2, 3, 10, 128])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_equals_the_formula(length, depth, scale):
    for seed in range(5):
        embeds = np.random.default_rng([seed, length, depth]).standard_normal((length, depth)) * scale
        embeds = embeds.astype(np.float32)
        query = pool_query(torch.tensor(embeds))
        assert query.dtype == torch.float32
        assert query.shape == (depth,)
        # float32 against float64: a sum of 128 rows of this scale rounds by some 1e-6 of it.
        np.testing.assert_allclose(query.numpy(), formula(embeds), rtol=0, atol=2e-6 * scale)


def test_no_token_gives_zero():
    assert pool_query(torch.zeros(0, 7)).tolist() == [0.0] * 7


def test_one_token_is_the_query():
    row = torch.randn(1, 9)
    assert torch.equal(pool_query(row), row[0])
    assert torch.equal(pool_query(row.half()), row.half().float()[0])


def test_later_tokens_weigh_more():
    # Orthogonal rows of one length: the mixing matrix has e on the diagonal and 1 elsewhere.
    query = pool_query(torch.eye(3))
    weights = np.exp([0, 1.5, 3]) / np.exp([0, 1.5, 3]).sum()
    mixing = (np.ones((3, 3)) + (np.e - 1) * np.eye(3)) / (np.e + 2)
    np.testing.assert_allclose(query.numpy(), weights @ mixing, rtol=1e-6)
    assert query[0] < query[1] < query[2]


def test_two_tokens_by_hand():
    query = pool_query(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    own, other = np.e / (np.e + 1), 1 / (np.e + 1)
    first, second = 1 / (1 + np.exp(3)), np.exp(3) / (1 + np.exp(3))
    expected = [2 * (first * own + second * other), 4 * (first * other + second * own)]
    np.testing.assert_allclose(query.numpy(), expected, rtol=1e-6)


def test_zero_rows():
    assert pool_query(torch.zeros(4, 6)).tolist() == [0.0] * 6
    embeds = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    embeds[[0, 3]] = 0
    np.testing.assert_allclose(pool_query(torch.tensor(embeds)).numpy(), formula(embeds), rtol=0, atol=2e-6)


def test_equal_rows_give_that_row():
    row = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    query = pool_query(torch.tensor(np.tile(row, (20, 1))))
    np.testing.assert_allclose(query.numpy(), row, rtol=1e-5)  # two averages of 20 equal numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_float32_of_the_same_values(dtype):
    embeds = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(pool_query(embeds), pool_query(embeds.float()))


def test_many_questions_at_once_are_each_its_own():
    random = torch.Generator().manual_seed(3)
    lengths = [1, 2, 7, 0, 128, 40]
    embeds = torch.randn(len(lengths), 128, 24, generator=random) * 50  # what lies past a question's end is not read
    queries = pool_queries(embeds, torch.tensor(lengths))
    for query, rows, length in zip(queries, embeds, lengths, strict=True):
        torch.testing.assert_close(query, pool_query(rows[:length]), rtol=1e-5, atol=1e-4)
    assert torch.equal(queries[0], embeds[0, 0]) and not queries[3].any()


@pytest.mark.parametrize("width", [24, 8, 7, 50])
def test_many_queries_are_brought_to_a_width_at_once(width):
    queries = torch.randn(5, 24, generator=torch.Generator().manual_seed(width))
    matched = match_width(queries, width)
    assert matched.shape == (5, width)
    for one, query in zip(matched, queries, strict=True):
        assert torch.equal(one, match_width(query, width))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), ()])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"embeds must be \[L, D\]"):
        pool_query(torch.ones(shape))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([1, 2, 3], [1, 2, 3]),
        ([1, IMAGE, 2, 3], [2, 3]),
        ([IMAGE, 1, IMAGE, 2], [2]),
        ([IMAGE, 1, VIDEO, 2, 3], [2, 3]),
        ([VIDEO, 1, IMAGE, 2, 3], [2, 3]),
        ([1, 2, IMAGE], []),
        ([IMAGE], []),
        ([IMAGE, IMAGE, 5], [5]),
    ],
)
def test_ids_after_the_last_placeholder(ids, expected):
    assert query_ids(ids, {IMAGE, VIDEO}) == expected
    assert query_ids(tuple(ids), {IMAGE: "image", VIDEO: "video"}) == expected


@pytest.mark.parametrize("length", [127, 128, 129, 500])
def test_at_most_the_last_128_ids(length):
    assert QUERY_TOKENS == 128
    words = list(range(length))
    assert query_ids(words, {IMAGE}) == words[-128:]
    assert query_ids([1, IMAGE, *words], {IMAGE}) == words[-128:]


def test_without_placeholders_all_ids_count():
    assert query_ids([1, IMAGE, 2], set()) == [1, IMAGE, 2]


@given(ids=st.lists(st.sampled_from([1, 2, 3, IMAGE, VIDEO]), max_size=300))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_ids_are_a_tail_without_placeholders(ids):
    tail = query_ids(ids, {IMAGE, VIDEO})
    assert ids[len(ids) - len(tail) :] == tail
    assert not {IMAGE, VIDEO} & set(tail)
    before = ids[: len(ids) - len(tail)]
    assert len(tail) == 128 or not before or before[-1] in (IMAGE, VIDEO)
