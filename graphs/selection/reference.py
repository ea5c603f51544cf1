"""Relevance- and diversity-driven selection in eager PyTorch: what every engine is held to (paper, section 3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import check_shapes, check_weights, num_candidates, num_kept
from .identical_tokens import FINGERPRINT_CHANNELS, IDENTICAL_COSINE
from .query_vector import match_width

_EPS = 1e-12

ScoreTokens = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MaxMinSelect = Callable[[Tensor, Tensor, int, float], Tensor]


def select_tokens(
    features: Tensor, query: Tensor, keep: float | int = 0.15, alpha: float = 0.5, tau: float = 0.0
) -> Tensor:
    """Indices of the visual tokens to keep, frame by frame.

    Args:
        features: [P, C] or [F, P, C], visual tokens before the projector, any float type.
        query: [D], from `pool_query`; brought to width C here.
        keep: float, the keep ratio in (0, 1]; int, the count K in [1, P].
        alpha: weight of relevance against diversity; 0 is diversity only (the first pick is still the most relevant).
        tau: candidate filter, off at 0. See `candidate_counts`.

    Returns:
        [K] or [F, K], int64, ascending. K = P is the identity.

    Raises:
        ValueError: a shape, keep, alpha or tau out of range.
    """
    return select_by(score_tokens, max_min_select, features, query, keep, alpha, tau)


def select_by(
    score: ScoreTokens,
    choose: MaxMinSelect,
    features: Tensor,
    query: Tensor,
    keep: float | int,
    alpha: float,
    tau: float,
) -> Tensor:
    """`select_tokens` by any implementation of its two heavy steps.

    Args:
        score: features and query of width C to relevance and similarity, see `score_tokens`.
        choose: the greedy choice, see `max_min_select`.
        features, query, keep, alpha, tau: as in `select_tokens`.

    Returns:
        [K] or [F, K], int64, ascending.

    Raises:
        ValueError: a shape, keep, alpha or tau out of range.
    """
    if features.ndim == 2:
        return select_by(score, choose, features[None], query, keep, alpha, tau)[0]
    check_shapes(features.shape, query.shape)
    check_weights(alpha, tau)
    frames, patches, width = features.shape
    count = num_kept(patches, keep)
    if count == patches:
        return torch.arange(patches, device=features.device).expand(frames, patches).clone()
    relevance, similarity = score(features, match_width(query.float(), width))
    if tau > 0:
        relevance = drop_below(relevance, candidate_counts(relevance, count, tau))
    return choose(similarity, relevance, count, alpha)


def score_tokens(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of the tokens with the query and with one another.

    Args:
        features: [F, P, C], any float type.
        query: [C], or [F, C] with one query for each frame.

    Returns:
        Relevance [F, P] and similarity [F, P, P], float32; similarity is at most 1. Tokens that are identical
        (`identical_tokens`) have the same scores, and a similarity of exactly 1 to each other.
    """
    unit, relevance = unit_tokens(features, query)
    similarity = (unit @ unit.transpose(1, 2)).clamp_max(1.0)  # [F, P, P]; so that no distance is negative
    identical = _identical(unit, relevance, similarity)  # [F, P, P]
    itself = torch.arange(features.shape[1], device=features.device)
    # The first token that is identical to each; a zero token is identical to none, not even to itself.
    first = torch.where(identical.any(dim=2), identical.int().argmax(dim=2), itself)  # [F, P]
    columns = similarity.masked_fill(identical, 1.0).gather(2, first[:, None].expand_as(similarity))
    return relevance, columns.gather(1, first[:, :, None].expand_as(similarity))


def unit_tokens(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens scaled to unit length, and their cosines with the query.

    Args:
        features: [F, P, C], any float type.
        query: [C], or [F, C] with one query for each frame.

    Returns:
        Unit vectors [F, P, C] and relevance [F, P], float32. Equal tokens have equal relevance.
    """
    unit = F.normalize(features.float(), dim=-1, eps=_EPS)  # [F, P, C]
    direction = F.normalize(query.float(), dim=-1, eps=_EPS)  # [C] or [F, C]
    # Summed row by row: a matrix product may round identical rows differently by their position.
    return unit, (unit * direction.unsqueeze(-2)).sum(dim=-1)


def fingerprints(unit: Tensor) -> Tensor:
    """Fingerprints (`identical_tokens`) of unit vectors [..., C]: [...] float32."""
    head = unit[..., :FINGERPRINT_CHANNELS]
    # `fingerprint_weights`, made on the device: a copy from the host could not be captured in a CUDA graph.
    weights = torch.arange(head.shape[-1], device=unit.device, dtype=torch.float32).cos()
    return (head * weights).sum(dim=-1)


def _identical(unit: Tensor, relevance: Tensor, similarity: Tensor) -> Tensor:
    """Which tokens of a frame are identical, [F, P, P] bool, from their unit vectors [F, P, C] and scores."""
    fingerprint = fingerprints(unit)  # [F, P]
    same_relevance = relevance[:, :, None] == relevance[:, None]
    same_fingerprint = fingerprint[:, :, None] == fingerprint[:, None]
    return (similarity > IDENTICAL_COSINE) & same_relevance & same_fingerprint


def candidate_counts(relevance: Tensor, count: int, tau: float) -> Tensor:
    """How many of each frame's most relevant tokens stay candidates when τ > 0.

    The release's two branches are both "the n most relevant", see `num_candidates`.

    Args:
        relevance: [F, P] float32.
        count: K, tokens to keep of each frame.
        tau: τ, the least relevance of a candidate where more than half of the tokens are kept.

    Returns:
        [F] int64, each between K and P.
    """
    frames, patches = relevance.shape
    candidates = num_candidates(patches, count)
    if candidates is not None:
        return torch.full((frames,), candidates, device=relevance.device)
    return (relevance >= tau).sum(dim=1).clamp_min(count)


def drop_below(relevance: Tensor, counts: Tensor) -> Tensor:
    """Relevance [F, P] with −inf on all but each frame's `counts` [F] most relevant tokens (ties: lowest index)."""
    order = relevance.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return relevance.masked_fill(rank >= counts[:, None], float("-inf"))


def max_min_select(similarity: Tensor, relevance: Tensor, count: int, alpha: float) -> Tensor:
    """Greedy max-min: `argmax r`, then K−1 times `argmax(min over picked of (1 − S) + α · r)`.

    The minimum over the picked is kept running, one row of S per pick: O(K·P) where the release recomputes it in
    O(K²·P) for the same choice.

    Args:
        similarity: [F, P, P] float32.
        relevance: [F, P] float32; −inf marks a token that may not be picked.
        count: K, at most the number of tokens with finite relevance.
        alpha: α, the weight of relevance.

    Returns:
        [F, K] int64, ascending. Ties go to the lowest index.
    """
    excluded = relevance.isneginf()
    weighted = (alpha * relevance).masked_fill(excluded, float("-inf"))
    nearest = torch.full_like(relevance, float("inf"))  # distance to the nearest picked token, −inf once picked
    pick = relevance.argmax(dim=1, keepdim=True)  # [F, 1]
    picks = [pick]
    for _ in range(count - 1):
        row = similarity.gather(1, pick[:, :, None].expand(-1, -1, similarity.shape[2]))[:, 0]  # [F, P]
        nearest = torch.minimum(nearest, 1 - row).scatter(1, pick, float("-inf"))
        pick = (nearest + weighted).argmax(dim=1, keepdim=True)
        picks.append(pick)
    return torch.cat(picks, dim=1).sort(dim=1).values
