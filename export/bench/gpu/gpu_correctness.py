"""Correctness of the selection kernels on a GPU: the greedy choice to the bit, the scores against float64."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....graphs.selection.counts import num_kept
from ....graphs.selection.cuda.launcher import MAX_PATCHES
from ....graphs.selection.cuda.tensors import max_min_select_cuda, score_tokens_cuda, select_tokens_cuda
from ....graphs.selection.reference import max_min_select, score_tokens

CHANNELS = 1024  # of CLIP-L
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
KINDS = ("random", "clustered", "near-duplicates", "duplicates", "zeros", "constant", "opposite", "ties", "excluded")

SMALL = tuple((patches, 64) for patches in (1, 2, 31, 32, 33, 100, 144, 196, 256))  # patches, frames at a time
LARGE = ((576, 8), (577, 4), (1024, 2), (1025, 2), (2304, 1), (4096, 1))
ODD = (
    (1, 1, 1),
    (2, 3, 7),
    (3, 65, 33),
    (1, 64, 8),
    (2, 129, 1152),
    (5, 63, 40),
)  # frames, patches, channels


def features(kind: str, frames: int, patches: int, channels: int, random: torch.Generator) -> Tensor:
    """Random features of one kind of `KINDS`.

    Args:
        kind: those after "near-duplicates" make ties or zero vectors.
        frames, patches, channels: F, P, C.
        random: on the device where the features shall be.

    Returns:
        [F, P, C] float32.
    """
    device = random.device
    x = torch.randn(frames, patches, channels, device=device, generator=random)
    if kind == "clustered":  # patches of real images are alike
        centres = torch.randn(frames, 8, channels, device=device, generator=random)
        choice = torch.randint(0, 8, (patches,), device=device, generator=random)
        return centres[:, choice] + 0.2 * x
    if kind == "near-duplicates":
        choice = torch.randint(0, -(-patches // 6), (patches,), device=device, generator=random)
        return x[:, choice] + 1e-3 * torch.randn(x.shape, device=device, generator=random)
    if kind == "duplicates":
        return x[:, torch.randint(0, -(-patches // 4), (patches,), device=device, generator=random)]
    if kind == "zeros":
        return x * (torch.rand(frames, patches, 1, device=device, generator=random) > 0.3)
    if kind == "constant":
        return torch.ones_like(x)
    if kind == "opposite":
        heads = torch.rand(frames, patches, 1, device=device, generator=random) > 0.5
        return x[:, :1] * torch.where(heads, 1.0, -1.0)
    return x


def check_greedy(random: torch.Generator, frames: int) -> dict[str, int]:
    """The greedy kernel against `max_min_select` on the CPU, on identical float32 scores.

    Args:
        random: on the GPU.
        frames: the least number of frames to check.

    Returns:
        How many frames were checked, and how many of them differ in any index.
    """
    checked = different = rounds = 0
    while checked < frames:
        for patches, batch in SMALL + (LARGE if rounds == 0 else ()):
            for turn, kind in enumerate(KINDS, start=rounds):
                x = features(kind, batch, patches, 64, random)
                relevance, similarity = score_tokens(x, torch.randn(64, device=x.device, generator=random))
                if kind == "ties":
                    similarity, relevance = (similarity * 8).round() / 8, (relevance * 8).round() / 8
                counts = {1, num_kept(patches, 0.15), patches // 2, patches - 1} - {0, patches} or {1}
                count = sorted(counts)[turn % len(counts)]
                if kind == "excluded":
                    order = torch.rand(batch, patches, device=x.device, generator=random).argsort(dim=1)
                    relevance = relevance.masked_fill(order >= max(count, patches // 2), float("-inf"))
                alpha = (0.5, 0.0, 2.0)[turn % 3]
                picked = max_min_select_cuda(similarity, relevance, count, alpha).cpu()
                expected = max_min_select(similarity.cpu(), relevance.cpu(), count, alpha)
                different += int((picked != expected).any(dim=1).sum())
                checked += batch
        rounds += 1
    return {"frames": checked, "frames_different": different}


def exact_scores(x: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance [F, P] and similarity [F, P, P] of features [F, P, C] and query [C], in float64."""
    unit = F.normalize(x.double(), dim=-1, eps=1e-12)
    return unit @ F.normalize(query.double(), dim=0, eps=1e-12), unit @ unit.transpose(1, 2)


def first_gap(relevance: Tensor, similarity: Tensor, picked: Tensor, alpha: float) -> Tensor:
    """Where the float64 greedy choice first leaves the set `picked`: by how much its score is better, [F].

    Args:
        relevance: [F, P] float64.
        similarity: [F, P, P] float64.
        picked: [F, K] int64.

    Returns:
        The gap between the best score and the best within the set at that pick; 0 where the sets are equal.
    """
    frames, patches = relevance.shape
    member = torch.zeros(frames, patches, dtype=torch.bool, device=picked.device).scatter_(1, picked, True)
    gap = torch.zeros(frames, dtype=torch.float64, device=picked.device)
    nearest = torch.full_like(relevance, float("inf"))
    score = relevance
    for _ in range(picked.shape[1]):
        best, pick = score.max(dim=1)
        within = score.masked_fill(~member, float("-inf")).amax(dim=1)
        gap = torch.where((gap == 0) & (best > within), best - within, gap)
        row = similarity.gather(1, pick[:, None, None].expand(-1, -1, patches))[:, 0]  # [F, P]
        nearest = torch.minimum(nearest, 1 - row).scatter(1, pick[:, None], float("-inf"))
        score = nearest + alpha * relevance
    return gap


def check_features(random: torch.Generator, frames: int, alpha: float = 0.5) -> list[dict[str, Any]]:
    """Selection from features, by the kernels and by eager float32, against the float64 greedy choice.

    Returns:
        One row per feature type, kind and size: for each route the frames that differ, the largest gap there,
        and the largest errors of similarity and relevance.
    """
    routes = (("kernel", score_tokens_cuda, max_min_select_cuda), ("eager", score_tokens, max_min_select))
    rows = []
    for dtype in DTYPES:
        for kind in ("random", "clustered", "near-duplicates"):
            for patches, batch, total in ((144, 64, frames), (576, 16, frames // 4)):
                row = {"dtype": str(dtype)[6:], "kind": kind, "patches": patches, "frames": 0}
                names = ("frames_different", "largest_gap", "similarity_error", "relevance_error")
                tally = {route: dict.fromkeys(names, 0.0) for route, _, _ in routes}
                while row["frames"] < total:
                    x = features(kind, batch, patches, CHANNELS, random).to(dtype)
                    query = torch.randn(CHANNELS, device=x.device, generator=random)
                    exact_r, exact_s = exact_scores(x, query)
                    for route, score, select in routes:
                        r, s = score(x, query)
                        gap = first_gap(exact_r, exact_s, select(s, r, num_kept(patches, 0.15), alpha), alpha)
                        t = tally[route]
                        t["frames_different"] += int((gap > 0).sum())
                        t["largest_gap"] = max(t["largest_gap"], float(gap.max()))
                        t["similarity_error"] = max(t["similarity_error"], float((s - exact_s).abs().max()))
                        t["relevance_error"] = max(t["relevance_error"], float((r - exact_r).abs().max()))
                    row["frames"] += batch
                rows.append(row | tally)
    return rows


def check_odd_shapes(random: torch.Generator) -> dict[str, float]:
    """Scores of odd sizes, with zero vectors and small and large values.

    Returns:
        The largest errors against float64, and the number of entries where S differs from its transpose.
    """
    worst = {"similarity_error": 0.0, "relevance_error": 0.0, "asymmetric_entries": 0}
    for dtype in DTYPES:
        for frames, patches, channels in ODD:
            for scale in (1.0, 100.0, 1e-3):
                x = (features("zeros", frames, patches, channels, random) * scale).to(dtype)
                query = torch.randn(channels, device=x.device, generator=random)
                exact_r, exact_s = exact_scores(x, query)
                r, s = score_tokens_cuda(x, query)
                worst["similarity_error"] = max(worst["similarity_error"], float((s - exact_s).abs().max()))
                worst["relevance_error"] = max(worst["relevance_error"], float((r - exact_r).abs().max()))
                worst["asymmetric_entries"] += int((s != s.transpose(1, 2)).sum())
    return worst


def sanitize(random: torch.Generator) -> None:
    """A short run at odd sizes for compute-sanitizer; set PYTORCH_NO_CUDA_MEMORY_CACHING=1 with it."""
    for dtype in DTYPES:
        for patches, channels in ((1, 8), (33, 40), (65, 33), (144, 64), (577, 32)):
            x = torch.randn(2, patches, channels, device=random.device, generator=random).to(dtype)
            query = torch.randn(channels, device=random.device, generator=random)
            for count in {1, -(-patches // 7), patches}:
                select_tokens_cuda(x, query, count)
    similarity = torch.eye(MAX_PATCHES // 4, device=random.device)[None]
    max_min_select_cuda(similarity, similarity[:, 0].clone(), 5, 0.5)
    torch.cuda.synchronize()
