"""`select_tokens`, in torch and in numpy, equals the method written out literally, index for index."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rediprune.graphs.selection import numpy_selection
from rediprune.graphs.selection.counts import num_kept
from rediprune.graphs.selection.query_vector import match_width
from rediprune.graphs.selection.reference import max_min_select, score_tokens, select_tokens

# Scores closer than TIED are one score (the literal method runs in float64); the winner of a pick that is decided by
# less than DECIDED is left to float32 rounding. Cases with such a pick prove nothing and are not compared.
TIED, DECIDED = 1e-10, 1e-5

FEW = settings(max_examples=60, deadline=None, derandomize=True)


def unit(row):
    return row / max(math.sqrt(float((row * row).sum())), 1e-12)


def to_width(query, width):
    """The query [D] in C numbers, in plain loops."""
    depth = len(query)
    if depth < width:
        return np.array([query[i % depth] for i in range(width)])
    if depth % width == 0:
        size = depth // width
        return np.array([query[i * size : (i + 1) * size].mean() for i in range(width)])
    bounds = [(math.floor(i * depth / width), math.ceil((i + 1) * depth / width)) for i in range(width)]
    return np.array([query[start:stop].mean() for start, stop in bounds])


class Literal:
    """The choice in one frame as the method says it; `gap` is the smallest difference that decided anything."""

    def __init__(self, tokens, query, count, alpha=0.5, tau=0.0):
        self.gap = math.inf
        tokens = np.asarray(tokens, np.float64)
        patches = len(tokens)
        query = unit(to_width(np.asarray(query, np.float64), tokens.shape[1]))
        rows = [unit(token) for token in tokens]
        relevance = [float(row @ query) for row in rows]
        distance = [[1 - float(a @ b) for b in rows] for a in rows]

        candidates = list(range(patches))
        if count >= patches:
            self.kept = candidates
            return
        if tau > 0:
            if count < patches // 2:
                candidates = self.most_relevant(relevance, min(patches, max(3 * count, count + 1)))
            else:
                candidates = [i for i in candidates if relevance[i] >= tau]
                self.gap = min([self.gap, *(abs(r - tau) for r in relevance if r != tau)])
                if len(candidates) < count:
                    candidates = self.most_relevant(relevance, count)
        picked = [self.best(candidates, [relevance[i] for i in candidates])]
        while len(picked) < count:
            left = [i for i in candidates if i not in picked]
            scores = [min(distance[i][j] for j in picked) + alpha * relevance[i] for i in left]
            picked.append(self.best(left, scores))
        self.kept = sorted(picked)

    def best(self, candidates, scores):
        top = max(scores)
        self.gap = min([self.gap, *(top - score for score in scores if top - score > TIED)])
        return next(i for i, score in zip(candidates, scores, strict=True) if top - score <= TIED)

    def most_relevant(self, relevance, number):
        left, found = list(range(len(relevance))), []
        while len(found) < number:
            found.append(self.best(left, [relevance[i] for i in left]))
            left.remove(found[-1])
        return sorted(found)


def compare(features, query, keep, count, alpha=0.5, tau=0.0):
    """Whether all frames are decided clearly; where they are, every index must be equal."""
    frames = [Literal(frame, query, count, alpha, tau) for frame in features]
    clear = [frame.gap > DECIDED for frame in frames]
    if all(clear):
        indices = select_tokens(torch.tensor(features), torch.tensor(query), keep, alpha, tau)
        assert indices.dtype == torch.int64
        assert indices.tolist() == [frame.kept for frame in frames]
        in_numpy = numpy_selection.select_tokens(features, query, keep, alpha, tau)
        assert in_numpy.dtype == np.int64
        assert np.array_equal(in_numpy, indices)
    return all(clear)


def signs(random, *shape):
    """Features of ±1. With 4, 16 or 64 of them norms, cosines and dyadic weights are exact, and ties are plenty."""
    return random.choice(np.array([-1, 1], np.float32), shape)


# ---------------------------------------------------------------------------------------------- the choice itself


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.7])
@pytest.mark.parametrize("depth", [16, 48, 40, 17, 7, 1])  # as is, groups, pooled twice, tiled and cut, one number
def test_equals_the_literal_method(depth, alpha, tau):
    random = np.random.default_rng([depth, int(alpha * 10), int(tau * 100)])
    compared = 0
    for _ in range(24):
        frames, patches = random.integers(1, 3), random.integers(1, 26)
        features = random.standard_normal((frames, patches, 16), np.float32)
        query = random.standard_normal(depth, np.float32)
        if random.random() < 0.5:  # most tokens relevant: more candidates than are kept
            features += unit(to_width(query, 16)).astype(np.float32) * 2
        if random.random() < 0.5:
            keep = float(random.uniform(0.02, 1))
            count = max(1, round(patches * keep))
        else:
            keep = count = int(random.integers(1, patches + 1))
        compared += compare(features, query, keep, count, alpha, tau)
    assert compared >= 23  # all but the rare pick that rounding decides


@pytest.mark.parametrize("tau", [0.0, 0.125, 0.25])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("channels", [4, 16])
def test_ties_go_to_the_lowest_index(channels, alpha, tau):
    random = np.random.default_rng([channels, int(alpha * 10), int(tau * 1000)])
    for _ in range(40):
        patches = random.integers(2, 28)
        features = signs(random, 1, patches, channels)
        features[random.random((1, patches)) < 0.15] = 0
        query = signs(random, channels) * (random.random() < 0.9)
        if random.random() < 0.5:  # most tokens relevant: more candidates than are kept
            features = np.where(random.random(features.shape) < 0.5, features, np.abs(features) * query)
        count = int(random.integers(1, patches + 1))
        assert compare(features, query, count, count, alpha, tau)


def test_many_patches():
    random = np.random.default_rng(5)
    features = random.standard_normal((1, 144, 24), np.float32)
    query = random.standard_normal(24, np.float32)
    assert compare(features, query, 0.15, 22)
    assert compare(features, query, 0.15, 22, tau=0.1)
    assert compare(features, query, 0.5, 72, tau=0.1)


def test_picks_by_hand():
    # Cosines to the query: 1, 0.8, 0.6, 0. Then the farthest: distances to (1, 0) are 0.2, 0.4, 1.
    features = torch.tensor([[1.0, 0.0], [4.0, 3.0], [0.6, 0.8], [0.0, 2.0]])
    query = torch.tensor([5.0, 0.0])
    assert select_tokens(features, query, 1).tolist() == [0]
    assert select_tokens(features, query, 2, alpha=0.0).tolist() == [0, 3]
    # 0.2 + 0.8 α against 0.4 + 0.6 α against 1 + 0: at α = 4 the second most relevant wins.
    assert select_tokens(features, query, 2, alpha=4.0).tolist() == [0, 1]


# ------------------------------------------------------------------------------------------------- the τ filter

# Cosines to the query 0.9, 0.8, … in the first six; the last four point away, each far from all others.
FAN = torch.tensor([[c, math.sqrt(1 - c * c)] for c in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)] + [[-1.0, 0.0]] * 4)
TOWARDS = torch.tensor([1.0, 0.0])


def test_tau_off_lets_the_farthest_in():
    assert 6 in select_tokens(FAN, TOWARDS, 2, alpha=0.0, tau=0.0)
    assert 6 in select_tokens(FAN, TOWARDS, 2, alpha=0.0, tau=-0.5)  # only τ > 0 filters


@pytest.mark.parametrize("tau", [1e-6, 0.3, 0.99, 5.0])
def test_few_kept_take_three_times_as_many_candidates_whatever_tau_is(tau):
    assert select_tokens(FAN, TOWARDS, 1, alpha=0.0, tau=tau).tolist() == [0]
    assert select_tokens(FAN, TOWARDS, 2, alpha=0.0, tau=tau).tolist() == [0, 5]  # the six most relevant
    # K = 4 < 5: twelve of ten, so all
    assert 6 in select_tokens(FAN, TOWARDS, 4, alpha=0.0, tau=tau)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.39, [0, 1, 2, 3, 4, 5]),
        (0.55, [0, 1, 2, 3, 4, 5]),  # four are relevant enough: the six most relevant instead
        (5.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_many_kept_fall_back_to_the_most_relevant(tau, expected):
    assert select_tokens(FAN, TOWARDS, 6, alpha=0.0, tau=tau).tolist() == expected
    assert select_tokens(FAN[:9], TOWARDS, 6, alpha=0.0, tau=tau).tolist() == expected


def test_many_kept_choose_among_those_at_least_tau():
    features, query = FAN.flip(0), TOWARDS
    # K = 5 = P // 2 is the second branch already: six candidates (indices 4 … 9), the least useful is left out.
    assert select_tokens(features, query, 5, alpha=0.0, tau=0.39).tolist() == Literal(features, query, 5, 0, 0.39).kept
    assert select_tokens(features, query, 5, alpha=0.0, tau=0.39)[0] >= 4


def test_relevance_equal_to_tau_is_a_candidate():
    features = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, -1], [-1, -1, -1, -1]])
    query = torch.ones(4)  # cosines 1, 1, 0.5, −1
    assert select_tokens(features, query, 2, alpha=0.0, tau=0.5).tolist() == [0, 2]
    assert select_tokens(features, query, 2, alpha=0.0, tau=0.51).tolist() == [0, 1]
    assert select_tokens(features, query, 3, alpha=0.0, tau=0.51).tolist() == [0, 1, 2]  # too few: the most relevant


# --------------------------------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("patches", "keep", "count"),
    [
        (10, 0.25, 2),  # 2.5 rounds to even
        (6, 0.25, 2),  # 1.5
        (14, 0.25, 4),  # 3.5
        (18, 0.25, 4),  # 4.5
        (5, 0.05, 1),
        (2, 0.25, 1),  # 0.5 rounds to 0: at least 1
        (576, 0.15, 86),
        (144, 0.15, 22),
        (144, 0.10, 14),
        (7, 1.0, 7),
        (7, 1, 1),
        (7, 7, 7),
        (1, 0.001, 1),
        (3, 0.9, 3),
        (8, np.float64(0.5), 4),
        (8, np.int64(3), 3),
    ],
)
def test_number_kept(patches, keep, count):
    assert num_kept(patches, keep) == count
    features = torch.randn(patches, 4, generator=torch.Generator().manual_seed(0))
    assert select_tokens(features, features[0], keep).shape == (count,)


@given(patches=st.integers(1, 3000), keep=st.floats(0, 1, exclude_min=True))
@FEW
def test_number_kept_is_pythons_rounding(patches, keep):
    assert num_kept(patches, keep) == max(1, round(patches * keep))


@pytest.mark.parametrize("keep", [1.0, 0.99, 9])
def test_all_kept_is_the_identity(keep):
    features = torch.zeros(2, 9, 4)
    assert select_tokens(features, torch.zeros(4), keep).tolist() == [list(range(9))] * 2
    assert select_tokens(features[0], torch.zeros(4), keep, tau=0.9).tolist() == list(range(9))


def test_one_kept_is_the_most_relevant():
    features = torch.randn(5, 30, 8, generator=torch.Generator().manual_seed(1))
    query = torch.randn(8, generator=torch.Generator().manual_seed(2))
    expected = F.cosine_similarity(features, query, dim=-1).argmax(dim=1)
    for alpha in (0.0, 0.5):
        assert torch.equal(select_tokens(features, query, 1, alpha=alpha)[:, 0], expected)


@pytest.mark.parametrize("keep", [0.15, 1.0, 1])
def test_one_patch(keep):
    assert select_tokens(torch.ones(3, 1, 4), torch.ones(4), keep, tau=0.5).tolist() == [[0]] * 3


# ----------------------------------------------------------------------------------------------- special inputs


@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_nothing_to_tell_tokens_apart(count, tau):
    first = list(range(count))
    query = torch.randn(6, generator=torch.Generator().manual_seed(count))
    row = torch.randn(6, generator=torch.Generator().manual_seed(9))
    assert select_tokens(torch.zeros(12, 6), query, count, tau=tau).tolist() == first
    assert select_tokens(row.expand(12, 6), query, count, tau=tau).tolist() == first
    assert select_tokens(row.expand(12, 6), torch.zeros(6), count, tau=tau).tolist() == first
    assert select_tokens(torch.ones(12, 6), row, count, tau=tau).tolist() == first


def test_zero_query_starts_at_the_first_token():
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(4))
    assert select_tokens(features, torch.zeros(8), 1).tolist() == [0]
    assert compare(features[None].numpy(), np.zeros(8, np.float32), 6, 6)


def test_scale_of_tokens_and_query_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    features, query = torch.randn(2, 40, 8, generator=generator), torch.randn(8, generator=generator)
    powers = 2.0 ** torch.randint(-8, 8, (2, 40, 1), generator=generator)  # exact
    assert torch.equal(select_tokens(features, query, 9), select_tokens(features * powers, query * 1024, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_float32_of_the_same_values(dtype):
    generator = torch.Generator().manual_seed(6)
    for _ in range(20):
        features = torch.randn(2, 50, 16, generator=generator).to(dtype)
        query = torch.randn(24, generator=generator).to(dtype)
        for keep in (0.15, 0.5):
            for tau in (0.0, 0.1):
                half = select_tokens(features, query, keep, tau=tau)
                assert torch.equal(half, select_tokens(features.float(), query.float(), keep, tau=tau))
    assert compare(features.float().numpy(), query.float().numpy(), 0.15, 8)


def test_inputs_are_left_as_they_were():
    features, query = torch.randn(2, 9, 4), torch.randn(4)
    before = features.clone(), query.clone()
    select_tokens(features, query, 3, tau=0.2)
    assert torch.equal(features, before[0])
    assert torch.equal(query, before[1])


def test_identical_tokens_go_to_the_lowest_index():
    for seed in (6004, 6008):
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(3, 32, generator=generator)
        query = torch.randn(32, generator=generator)
        kept = set(select_tokens(torch.cat([base, base]), query, 3).tolist())
        assert not any(later in kept and later - 3 not in kept for later in (3, 4, 5))


# --------------------------------------------------------------------------------------------------- properties

FRAMES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.just(4)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.0, 1.0]))
)
QUERY = hnp.arrays(np.float32, 4, elements=st.sampled_from([-1.0, 1.0]))
ALPHA = st.sampled_from([0.0, 0.25, 0.5, 2.0])
TAU = st.sampled_from([0.0, 0.25, 0.5])


@given(features=FRAMES, query=QUERY, keep=st.floats(0.01, 1), alpha=ALPHA, tau=TAU)
@FEW
def test_frames_are_independent_and_output_is_ascending(features, query, keep, alpha, tau):
    frames, patches, _ = features.shape
    indices = select_tokens(torch.tensor(features), torch.tensor(query), keep, alpha, tau)
    assert indices.shape == (frames, max(1, round(patches * keep)))
    assert indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < patches)).all()
    assert (indices.diff(dim=1) > 0).all()
    for frame, kept in zip(features, indices, strict=True):
        alone = select_tokens(torch.tensor(frame), torch.tensor(query), keep, alpha, tau)
        assert torch.equal(alone, kept)


@given(features=FRAMES, query=QUERY, alpha=ALPHA, tau=TAU, data=st.data())
@FEW
def test_equals_the_literal_method_on_small_cases(features, query, alpha, tau, data):
    count = data.draw(st.integers(1, features.shape[1]))
    assert compare(features, query, count, count, alpha, tau)


@given(seed=st.integers(0, 2**32 - 1), patches=st.integers(2, 24), alpha=ALPHA, tau=TAU, data=st.data())
@FEW
def test_order_of_tokens_does_not_matter_without_ties(seed, patches, alpha, tau, data):
    random = np.random.default_rng(seed)
    features, query = random.standard_normal((patches, 8), np.float32), random.standard_normal(8, np.float32)
    count = data.draw(st.integers(1, patches))
    assume(Literal(features, query, count, alpha, tau).gap > DECIDED)
    order = random.permutation(patches)
    straight = select_tokens(torch.tensor(features), torch.tensor(query), count, alpha, tau)
    shuffled = select_tokens(torch.tensor(features[order]), torch.tensor(query), count, alpha, tau)
    assert sorted(order[shuffled.numpy()].tolist()) == straight.tolist()


@given(features=FRAMES, query=QUERY, alpha=ALPHA)
@FEW
def test_keeping_more_keeps_what_was_kept(features, query, alpha):
    before = set()
    for count in range(1, features.shape[1] + 1):
        now = set(select_tokens(torch.tensor(features[0]), torch.tensor(query), count, alpha).tolist())
        assert before < now
        before = now


def test_a_query_for_each_frame():
    generator = torch.Generator().manual_seed(10)
    features, queries = torch.randn(3, 20, 8, generator=generator), torch.randn(3, 8, generator=generator)
    relevance, similarity = score_tokens(features, queries)
    for frame in range(3):
        alone = score_tokens(features[frame : frame + 1], queries[frame])
        torch.testing.assert_close(relevance[frame], alone[0][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(similarity[frame], alone[1][0], rtol=0, atol=1e-6)


def test_max_min_select_never_takes_a_marked_token():
    random = np.random.default_rng(8)
    for alpha in (0.0, 0.5):
        relevance = torch.tensor(random.standard_normal((3, 20)), dtype=torch.float32)
        relevance[:, ::2] = -math.inf
        similarity = torch.tensor(random.standard_normal((3, 20, 20)), dtype=torch.float32)
        assert (max_min_select(similarity, relevance, 10, alpha) == torch.arange(1, 20, 2)).all()


# ----------------------------------------------------------------------------------------------- the query's width


def test_match_width_keeps_an_equal_width():
    query = torch.randn(16)
    assert torch.equal(match_width(query, 16), query)


@pytest.mark.parametrize(("depth", "width"), [(3, 8), (4, 8), (1, 5), (7, 8), (5, 16)])
def test_match_width_tiles_and_cuts(depth, width):
    query = torch.randn(depth)
    assert match_width(query, width).tolist() == [query[i % depth].item() for i in range(width)]


@pytest.mark.parametrize(("depth", "width"), [(8, 4), (96, 32), (4096, 1024), (12, 1)])
def test_match_width_averages_groups(depth, width):
    query = torch.arange(depth, dtype=torch.float32)  # sums below 2²⁴: exact
    size = depth // width
    assert match_width(query, width).tolist() == [i * size + (size - 1) / 2 for i in range(width)]


@pytest.mark.parametrize(("depth", "width"), [(5, 4), (48, 32), (17, 16), (1152, 1024), (3584, 1152), (7, 3)])
def test_match_width_pools_adaptively(depth, width):
    query = torch.tensor(np.random.default_rng(depth).standard_normal(depth), dtype=torch.float32)
    pooled = match_width(query, width)
    # Means of a few float32 numbers of size 1, in another order of summation.
    np.testing.assert_allclose(pooled.numpy(), to_width(query.double().numpy(), width), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------- bad settings

FEATURES, VECTOR = torch.ones(10, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0.0, r"keep as a ratio must lie in \(0, 1\], not 0\.0"),
        (-0.5, r"keep as a ratio .* not -0\.5"),
        (1.0001, r"keep as a ratio .* not 1\.0001"),
        (2.0, r"keep as a ratio .* for a number of tokens give an int"),
        (math.nan, "keep as a ratio .* not nan"),
        (math.inf, "keep as a ratio .* not inf"),
        (-math.inf, "keep as a ratio .* not -inf"),
        (0, "keep as a count must lie between 1 and the 10 tokens .* not 0"),
        (-3, "keep as a count .* not -3"),
        (11, "keep as a count .* not 11"),
        (True, r"keep must be a ratio \(float\) or a count \(int\), not True"),
        (False, "keep must be .* not False"),
        ("0.5", "keep must be .* not '0.5'"),
        (None, "keep must be .* not None"),
        (1j, "keep must be .* not 1j"),
    ],
)
def test_refuses_keep(keep, message):
    with pytest.raises(ValueError, match=message):
        num_kept(10, keep)
    with pytest.raises(ValueError, match=message):
        select_tokens(FEATURES, VECTOR, keep)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_refuses_alpha(alpha, keep):
    with pytest.raises(ValueError, match=f"alpha must be a finite number ≥ 0, not {alpha}"):
        select_tokens(FEATURES, VECTOR, keep, alpha=alpha)


@pytest.mark.parametrize("tau", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_refuses_tau(tau, keep):
    with pytest.raises(ValueError, match=f"tau must be finite, not {tau}"):
        select_tokens(FEATURES, VECTOR, keep, tau=tau)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4, 5)])
def test_refuses_shapes_of_features(shape):
    with pytest.raises(ValueError, match=r"features must be \[P, C\] or \[F, P, C\], not \["):
        select_tokens(torch.ones(shape), VECTOR)


@pytest.mark.parametrize("shape", [(), (1, 4), (4, 1)])
def test_refuses_shapes_of_the_query(shape):
    with pytest.raises(ValueError, match=r"query must be \[D\], not \["):
        select_tokens(FEATURES, torch.ones(shape))


@pytest.mark.parametrize(("shape", "depth"), [((0, 4), 4), ((3, 0), 4), ((3, 4), 0)])
def test_refuses_empty_sizes(shape, depth):
    with pytest.raises(ValueError, match=r"features|query"):
        select_tokens(torch.ones(shape), torch.ones(depth), 0.5)


def test_an_alpha_beyond_float32_is_refused_or_sound():
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    try:
        kept = select_tokens(features, features[0], 3, alpha=1e39)
    except ValueError:
        return
    assert len(set(kept.tolist())) == 3
