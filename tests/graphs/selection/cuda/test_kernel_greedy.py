"""The kernel's greedy code equals the eager reference, index for index, on the same float32 scores."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rediprune.graphs.selection.cuda import launcher
from rediprune.graphs.selection.reference import candidate_counts, drop_below, max_min_select, score_tokens
from torch import Tensor

pytestmark = pytest.mark.cuda

HostSelect = Callable[..., Tensor]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def features(kind: str, frames: int, patches: int, channels: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, patches, channels, generator=random)
    if kind == "duplicates":
        return x[:, torch.randint(0, max(1, patches // 4), (patches,), generator=random)]
    if kind == "zeros":
        return x * (torch.rand(frames, patches, 1, generator=random) > 0.5)
    if kind == "constant":
        return torch.ones_like(x)
    if kind == "opposite":  # S of exactly ±1: a distance of 2 or 0
        return x[:, :1] * torch.where(torch.rand(frames, patches, 1, generator=random) > 0.5, 1.0, -1.0)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["random", "duplicates", "zeros", "constant", "opposite"])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_the_reference(host_select: HostSelect, kind: str, dtype: torch.dtype, threads: int) -> None:
    for seed in range(10):
        patches = (1, 2, 31, 32, 33, 100, 144)[seed % 7]
        x = features(kind, 3, patches, 24, seed).to(dtype)
        query = torch.randn(24, generator=torch.Generator().manual_seed(seed))
        relevance, similarity = score_tokens(x, query)
        for count in {1, max(1, patches // 7), max(1, patches - 1), patches}:
            for alpha in (0.0, 0.5, 3.0):
                expected = max_min_select(similarity, relevance, count, alpha)
                if count == patches:  # everything kept: nothing to choose
                    expected = torch.arange(patches).expand(3, patches)
                assert torch.equal(host_select(similarity, relevance, count, alpha, threads), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_excluded_tokens_are_never_picked(host_select: HostSelect, alpha: float) -> None:
    x = features("random", 4, 60, 16, seed=1)
    relevance, similarity = score_tokens(x, torch.ones(16))
    count = 12
    kept = drop_below(relevance, candidate_counts(relevance, count, tau=0.1))
    picked = host_select(similarity, kept, count, alpha)
    assert torch.equal(picked, max_min_select(similarity, kept, count, alpha))
    assert kept.gather(1, picked).isfinite().all()


def test_too_few_candidates_still_give_distinct_indices_in_range(host_select: HostSelect) -> None:
    relevance = torch.full((1, 40), float("-inf"))
    relevance[0, [7, 30]] = 1.0
    picked = host_select(torch.eye(40)[None], relevance, 5, 0.5)
    assert picked.tolist() == [[0, 1, 2, 7, 30]]


def test_nan_scores_still_give_distinct_indices_in_range(host_select: HostSelect) -> None:
    nan = torch.full((2, 20, 20), float("nan"))
    picked = host_select(nan, nan[:, 0], 6, 0.5)
    assert picked.tolist() == [list(range(6))] * 2


def test_minus_zero_ties_with_plus_zero(host_select: HostSelect) -> None:
    relevance = torch.tensor([[-0.0, 0.0, -0.0]])
    assert host_select(torch.eye(3)[None], relevance, 1, 0.5).tolist() == [[0]]


def test_score_is_rounded_after_each_operation(host_select: HostSelect) -> None:
    # Token 0 is picked first. At equal distances, tokens 1 and 2 tie once α·r is rounded to float32; a fused
    # multiply-add would see that token 2's product is a little larger, and take it.
    alpha = float(torch.tensor(1.1))
    candidates = torch.arange(2**22, dtype=torch.float64) * 2**-24 + 1 / 3
    r = candidates.float()
    rounded = torch.tensor(alpha, dtype=torch.float32) * r + 0.5
    fused = (alpha * r.double() + 0.5).float()
    tie = ((rounded[:-1] == rounded[1:]) & (fused[:-1] < fused[1:])).nonzero()[0]
    relevance = torch.tensor([[9.0, float(r[tie]), float(r[tie + 1])]])
    similarity = torch.full((1, 3, 3), 0.5)
    assert host_select(similarity, relevance, 2, alpha).tolist() == [[0, 1]]
    assert max_min_select(similarity, relevance, 2, alpha).tolist() == [[0, 1]]


# Few distinct values make ties the rule rather than the exception.
values = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0, 1 - 2**-24])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), patches=st.integers(1, 24), threads=st.sampled_from([1, 2]))
def test_equals_the_reference_on_any_scores(
    host_select: HostSelect, data: st.DataObject, patches: int, threads: int
) -> None:
    count = data.draw(st.integers(1, patches))
    similarity = torch.tensor(data.draw(st.lists(values, min_size=patches**2, max_size=patches**2)))
    relevance = torch.tensor(data.draw(st.lists(values, min_size=patches, max_size=patches)))
    alpha = data.draw(st.floats(0, 8, width=32))
    scores = similarity.view(1, patches, patches), relevance[None]
    assert torch.equal(host_select(*scores, count, alpha, threads), max_min_select(*scores, count, alpha))


@pytest.mark.parametrize("patches", [1, 31, 32, 33, 144, 577, 1025, 4096, launcher.MAX_PATCHES])
def test_a_block_has_whole_warps_and_room_for_every_token(sources: Path, patches: int) -> None:
    threads = launcher.block_size(patches)
    assert threads % 32 == 0 and 32 <= threads <= 1024
    kernel = (sources / "maxmin.cu").read_text(encoding="utf-8")
    most = max(int(items) for items in re.findall(r"greedy_max_min<(\d+)>", kernel))
    assert patches <= most * threads
    assert f"max_patches = {launcher.MAX_PATCHES};" in kernel
