"""Identical tokens tie, near-duplicates do not: every implementation against the release, restated in float64."""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from rediprune.graphs.selection import numpy_selection
from rediprune.graphs.selection.identical_tokens import fingerprint_weights
from rediprune.graphs.selection.onnx_graph import select_model
from rediprune.graphs.selection.reference import score_tokens, select_tokens

# float64 scores closer than TIED are one score. A pick that is decided by less than DECIDED is left to the rounding of
# float32 (a distance near 1 is rounded by 6e-8); no implementation may be worse than the best pick by more than that.
TIED, DECIDED = 1e-12, 2e-6

Choose = Callable[..., np.ndarray]


class Release:
    """The release's choice in one frame, pick by pick in float64; `gap` is the smallest difference that decided one."""

    def __init__(self, tokens, query, count, alpha):
        tokens, query = np.asarray(tokens, np.float64), np.asarray(query, np.float64)
        unit = tokens / np.maximum(np.sqrt((tokens**2).sum(axis=1, keepdims=True)), 1e-12)
        self.relevance = unit @ (query / max(np.sqrt((query**2).sum()), 1e-12))
        self.distance = 1 - unit @ unit.T
        self.alpha, self.gap = alpha, np.inf
        picked = []
        while len(picked) < count:
            scores = self.scores(picked)
            best = scores.max()
            behind = best - scores
            if (behind > TIED).any():
                self.gap = min(self.gap, behind[behind > TIED].min())
            picked.append(int((behind <= TIED).argmax()))
        self.kept = sorted(picked)

    def scores(self, picked):
        scores = self.relevance.copy()
        if picked:
            scores = self.distance[picked].min(axis=0) + self.alpha * self.relevance
            scores[picked] = -np.inf
        return scores

    def shortfall(self, kept):
        """By how much the best pick beats the best of `kept` where the release first picks another token; 0 if never."""
        picked = []
        while len(picked) < len(self.kept):
            scores = self.scores(picked)
            best = scores.max()
            within = max(scores[i] for i in kept)
            if best - within > TIED:
                return best - within
            tied = [i for i in kept if best - scores[i] <= TIED]
            picked.append(min(tied))
        return 0.0


def drawn(random, kind, frames, patches, channels):
    """Features [F, P, C] of a kind, a number being the noise that tells near-duplicates apart."""
    bases = random.standard_normal((frames, -(-patches // random.integers(2, 7)), channels))
    tokens = np.take(bases, random.integers(0, bases.shape[1], patches), axis=1)
    noise = random.standard_normal(tokens.shape)
    if kind == "identical":
        pass
    elif kind == "mixture":  # some are identical, some nearly so at any level, some have no likeness, some are zero
        level = 10.0 ** random.integers(-7, 1, (frames, patches, 1))
        tokens = tokens + noise * level * (random.random((frames, patches, 1)) < 0.6)
        tokens[random.random((frames, patches)) < 0.05] = 0
    else:
        tokens = tokens + noise * float(kind)
    return tokens.astype(np.float32)


NOISE = ["1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "1e-7"]
KINDS = [*NOISE, "identical", "mixture"]
WIDTHS = [16, 24, 33]  # 33: rows of which no two begin at a like address


def check(choose: Choose, features, query, count, alpha) -> int:
    """Hold one call's frames to the release; how many of them it decides clearly."""
    frames = choose(features, query, count, alpha)
    assert frames.dtype == np.int64 and frames.shape == (len(features), count)
    decided = 0
    for tokens, kept in zip(features, frames.tolist(), strict=True):
        assert kept == sorted(set(kept))
        first = {}  # identical tokens go to the lowest index: none is kept whose like before it is not
        for i, row in enumerate(tokens + 0.0):
            first.setdefault(row.tobytes(), []).append(i)
        for same in first.values():
            chosen = [i in kept for i in same]
            assert chosen == sorted(chosen, reverse=True), (same, kept)
        release = Release(tokens, query, count, alpha)
        assert release.shortfall(kept) <= DECIDED
        if release.gap > DECIDED:
            decided += 1
            assert kept == release.kept
    return decided


# ---------------------------------------------------------------------------------------- the implementations


def by_torch(features, query, count, alpha):
    return select_tokens(torch.from_numpy(features), torch.from_numpy(query), count, alpha).numpy()


def stage_inputs(features, query, count, alpha):
    """One question token of the tower's width: it is the query."""
    numbers = {"alpha": np.array(alpha, np.float32), "tau": np.array(0, np.float32)}
    return {"features": features, "text_embeds": query[None], "num_keep": np.array(count, np.int64)} | numbers


@cache
def ort_session(channels):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = ir.to_proto(select_model(channels, channels)).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def by_onnx_runtime(features, query, count, alpha):
    return ort_session(features.shape[2]).run(["indices"], stage_inputs(features, query, count, alpha))[0]


@cache
def evaluator(channels):
    return ReferenceEvaluator(ir.to_proto(select_model(channels, channels)))


def by_onnx_reference(features, query, count, alpha):
    return evaluator(features.shape[2]).run(["indices"], stage_inputs(features, query, count, alpha))[0]


@pytest.fixture
def by_cuda(host_score, host_select) -> Choose:
    """The kernels' code on the CPU."""

    def choose(features, query, count, alpha):
        relevance, similarity = host_score(torch.from_numpy(features), torch.from_numpy(query))
        return host_select(similarity, relevance, count, alpha).numpy()

    return choose


FAST: dict[str, Choose] = {
    "torch": by_torch,
    "numpy": numpy_selection.select_tokens,
    "onnx runtime": by_onnx_runtime,
    "onnx reference": by_onnx_reference,
}


def settings_of(random):
    """Alpha, mostly the default, and the share of the tokens that is kept."""
    return float(random.choice([0.0, 0.5, 0.5, 2.0])), float(random.choice([0.1, 0.2, 0.5]))


# ---------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("technology", FAST)
def test_near_duplicates_as_in_the_release(technology, kind):
    random = np.random.default_rng([KINDS.index(kind), 1])
    cases = decided = 0
    for _ in range(4):
        for channels in WIDTHS:
            features = drawn(random, kind, 12, int(random.integers(20, 50)), channels)
            query = random.standard_normal(channels, np.float32)
            alpha, keep = settings_of(random)
            decided += check(FAST[technology], features, query, round(features.shape[1] * keep), alpha)
            cases += len(features)
    assert cases == 144  # over all kinds more than a thousand
    if kind in ("1e-2", "identical"):
        assert decided > 0.9 * cases
    if kind == "1e-3":
        assert decided > 0.5 * cases


@pytest.mark.parametrize("kind", KINDS)
def test_near_duplicates_in_the_cuda_kernels(by_cuda, kind):
    random = np.random.default_rng([KINDS.index(kind), 2])
    for channels in (24, 33):
        features = drawn(random, kind, 2, 36, channels)
        check(by_cuda, features, random.standard_normal(channels, np.float32), 9, 0.5)


@pytest.mark.parametrize("technology", [*FAST, "cuda"])
def test_six_noisy_copies_of_each_of_24_tokens(technology, by_cuda):
    """P = 144, K = 24, noise 1e-3: treated as one token each, 15 of the 24 picks would be others."""
    choose = by_cuda if technology == "cuda" else FAST[technology]
    decided = 0
    for seed in range(2 if technology == "cuda" else 12):
        random = np.random.default_rng(seed)
        bases = random.standard_normal((1, 24, 24))
        features = np.repeat(bases, 6, axis=1) + 1e-3 * random.standard_normal((1, 144, 24))
        query = random.standard_normal(24, np.float32)
        decided += check(choose, features.astype(np.float32), query, 24, 0.5)
    assert decided


@pytest.mark.parametrize("technology", [*FAST, "cuda"])
@pytest.mark.parametrize("kind", ["1e-2", "1e-3", "identical", "mixture"])
def test_a_query_that_says_nothing(technology, kind, by_cuda):
    """All relevances are 0: only the fingerprint can tell near-duplicates from identical tokens."""
    choose = by_cuda if technology == "cuda" else FAST[technology]
    random = np.random.default_rng([KINDS.index(kind), 3])
    frames = 2 if technology == "cuda" else 16
    check(choose, drawn(random, kind, frames, 30, 24), np.zeros(24, np.float32), 10, 0.5)


@pytest.mark.parametrize("technology", [*FAST, "cuda"])
@pytest.mark.parametrize("swapped", [False, True])
def test_near_duplicates_of_equal_relevance_are_not_one_token(technology, swapped, by_cuda):
    """Tokens 0 and 1 differ by a swap of two channels that the query does not look at; token 2 tells them apart."""
    choose = by_cuda if technology == "cuda" else FAST[technology]
    features = np.zeros((1, 4, 16), np.float32)
    features[0, 0, :3] = [2, 1, 1 + 2**-9]
    features[0, 1, :3] = [2, 1 + 2**-9, 1]
    features[0, 2, [1, 4]] = [4, 16]  # the most relevant; nearer to token 1
    features[0, 3, [1, 4]] = [-4, -8]
    query = np.zeros(16, np.float32)
    query[4] = 1
    if swapped:
        features[:, :2] = features[:, 1::-1]
    relevance, similarity = score_tokens(torch.from_numpy(features), torch.from_numpy(query))
    assert relevance[0, 0] == relevance[0, 1] and 1 - 2.0**-20 < similarity[0, 0, 1] < 1
    release = Release(features[0], query, 3, 0.5)
    assert release.gap > DECIDED and release.kept == [int(swapped), 2, 3]
    assert choose(features, query, 3, 0.5).tolist() == [release.kept]


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), alpha=st.floats(0, 4, width=32), data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_near_duplicates_as_in_the_release(seed, kind, alpha, data):
    random = np.random.default_rng(seed)
    features = drawn(random, kind, 1, data.draw(st.integers(2, 30)), data.draw(st.sampled_from(WIDTHS)))
    query = random.standard_normal(features.shape[2], np.float32)
    count = data.draw(st.integers(1, features.shape[1]))
    for choose in (by_torch, numpy_selection.select_tokens, by_onnx_runtime):
        check(choose, features, query, count, alpha)


@pytest.mark.parametrize("kind", ["1e-2", "identical"])
def test_implementations_agree_with_one_another_behind_a_tau(kind):
    random = np.random.default_rng([KINDS.index(kind), 4])
    for channels in WIDTHS:
        for keep, tau in ((4, 0.1), (16, 0.1), (16, 0.9)):
            features = drawn(random, kind, 8, 30, channels)
            query = features[0, 0] + random.standard_normal(channels, np.float32)
            ours = numpy_selection.select_tokens(features, query, keep, 0.5, tau)
            theirs = select_tokens(torch.from_numpy(features), torch.from_numpy(query), keep, 0.5, tau)
            inputs = stage_inputs(features, query, keep, 0.5) | {"tau": np.array(tau, np.float32)}
            assert np.array_equal(ours, theirs.numpy())
            assert np.array_equal(ours, ort_session(channels).run(["indices"], inputs)[0])


def test_scores_of_identical_tokens_are_equal_to_the_bit(host_score):
    random = np.random.default_rng(5)
    for channels in (7, 24, 33, 64):
        features = torch.from_numpy(drawn(random, "identical", 2, 40, channels))
        query = torch.from_numpy(random.standard_normal(channels, np.float32))
        same = (features[:, :, None] == features[:, None]).all(dim=-1)  # [F, P, P]
        for score in (score_tokens, host_score):
            relevance, similarity = score(features, query)
            assert (similarity[same] == 1).all() and similarity.max() == 1
            assert (relevance[:, :, None] == relevance[:, None])[same].all()
            for frame, twins in zip(similarity, same, strict=True):
                for i, j in twins.nonzero().tolist():
                    assert torch.equal(frame[i], frame[j])


def test_the_fingerprint_tells_simple_rows_apart():
    weights = fingerprint_weights(12)
    rows = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1).T.astype(np.float32)  # all rows of ±1
    assert len(np.unique((rows * weights).sum(axis=1))) == len(rows)
    assert len(fingerprint_weights(5)) == 5 and len(fingerprint_weights(4096)) == 32


def test_scores_of_the_cuda_kernels_equal_the_reference(host_score):
    random = np.random.default_rng(6)
    for frames, patches, channels in ((2, 1, 1), (1, 33, 40), (1, 65, 7), (2, 31, 130)):
        features = random.standard_normal((frames, patches, channels), np.float32)
        features[random.random((frames, patches)) < 0.1] = 0
        query = torch.from_numpy(random.standard_normal(channels, np.float32))
        relevance, similarity = host_score(torch.from_numpy(features), query)
        expected = score_tokens(torch.from_numpy(features), query)
        torch.testing.assert_close(relevance, expected[0], rtol=0, atol=5e-7)
        torch.testing.assert_close(similarity, expected[1], rtol=0, atol=5e-7)
        assert torch.equal(similarity, similarity.transpose(1, 2))


def test_the_cuda_kernels_have_the_rules_constants(sources):
    text = (sources / "scores.cuh").read_text(encoding="utf-8")
    assert "identical_cosine = 1.0f - 1.0f / (1 << 20);" in text
    assert ctypes.c_float(1 - 2.0**-20).value == 1 - 2.0**-20  # exact in float32
