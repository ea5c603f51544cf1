"""Relevance- and diversity-driven selection in eager PyTorch: the truth every engine is held to (paper section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import check_weights, num_kept
from .query_vector import match_width

_EPS = 1e-12
# Cosines above this are those of one and the same token: float32 rounding of their dot product must not decide which
# of several identical tokens is picked, or every backend picks another.
SAME_TOKEN = 1 - 2.0**-20


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
    if features.ndim == 2:
        return select_tokens(features[None], query, keep, alpha, tau)[0]
    if features.ndim != 3:
        raise ValueError(f"features must be [P, C] or [F, P, C], not {list(features.shape)}")
    if query.ndim != 1:
        raise ValueError(f"query must be [D], not {list(query.shape)}")
    check_weights(alpha, tau)
    frames, patches, width = features.shape
    if not (patches and width and query.shape[0]):
        raise ValueError(f"features {list(features.shape)} and query {list(query.shape)} must not be empty")
    count = num_kept(patches, keep)
    if count == patches:
        return torch.arange(patches, device=features.device).expand(frames, patches).clone()
    relevance, similarity = score_tokens(features, match_width(query.float(), width))
    if tau > 0:
        relevance = drop_below(relevance, candidate_counts(relevance, count, tau))
    return max_min_select(similarity, relevance, count, alpha)


def score_tokens(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine relevance [F, P] of each token to the query [C], and cosine similarity [F, P, P] of the tokens, float32.

    Identical tokens get identical scores: those of the first of them.
    """
    unit = F.normalize(features.float(), dim=-1, eps=_EPS)  # [F, P, C]
    # Summed row by row: a matrix product may round identical rows differently by their position.
    relevance = (unit * F.normalize(query.float(), dim=0, eps=_EPS)).sum(dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    same = similarity > SAME_TOKEN
    itself = torch.arange(features.shape[1], device=features.device)
    first = torch.where(same.any(dim=2), same.int().argmax(dim=2), itself)  # [F, P]; a zero token is like none
    columns = similarity.masked_fill(same, 1.0).gather(2, first[:, None].expand_as(similarity))
    return relevance, columns.gather(1, first[:, :, None].expand_as(similarity))


def candidate_counts(relevance: Tensor, count: int, tau: float) -> Tensor:
    """How many of each frame's most relevant tokens stay candidates when τ > 0: [F] int64.

    The release's two branches are both "the n most relevant": `min(P, max(3K, K+1))` when K < P // 2, whatever τ is;
    otherwise the tokens with relevance ≥ τ, or K if those are fewer.
    """
    frames, patches = relevance.shape
    if count < patches // 2:
        return torch.full((frames,), min(patches, max(3 * count, count + 1)), device=relevance.device)
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
