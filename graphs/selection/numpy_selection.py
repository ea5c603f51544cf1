"""The whole selection in numpy: the method to read beside docs/method.md, and for places without torch.

Every function has the name of its counterpart in torch (`query_vector`, `reference`) and computes the same in float32.
"""

import numpy as np

from .counts import check_shapes, check_weights, num_candidates, num_kept
from .identical_tokens import IDENTICAL_COSINE, fingerprint_weights

_EPS = np.float32(1e-12)


def pool_query(embeds: np.ndarray) -> np.ndarray:
    """Question embeddings to one query vector.

    Args:
        embeds: [L, D], rows of the language model's input embedding of the tokens after the last placeholder.

    Returns:
        [D] float32. L = 1 gives that row, L = 0 the zero vector.

    Raises:
        ValueError: embeds is not [L, D].
    """
    if embeds.ndim != 2:
        raise ValueError(f"embeds must be [L, D], not {list(embeds.shape)}")
    embeds = embeds.astype(np.float32)
    unit = _normalize(embeds)
    alike = np.exp(unit @ unit.T)  # [L, L]; cosines need no shift before exp
    mixed = (alike / alike.sum(axis=-1, keepdims=True)) @ embeds  # [L, D]
    position = np.arange(len(embeds), dtype=np.float32) / max(len(embeds) - 1, 1)
    weights = np.exp(3 * position)  # [L]
    return (weights / weights.sum()) @ mixed


def match_width(query: np.ndarray, width: int) -> np.ndarray:
    """Bring the query [D] to the tower's width C: as is, group mean, adaptive average pooling, or tile and cut."""
    depth = len(query)
    if depth == width:
        return query
    if depth < width:
        return np.tile(query, -(-width // depth))[:width]
    # Number i is the mean of those from ⌊i·D/C⌋ to ⌈(i+1)·D/C⌉ − 1: groups where C divides D, else windows that overlap.
    edges = np.arange(width + 1) * depth
    starts, stops = edges[:-1] // width, -(-edges[1:] // width)  # [C]
    sums = np.add.reduceat(np.append(query, 0), np.stack([starts, stops], axis=1).ravel())[::2]
    return (sums / (stops - starts)).astype(np.float32)


def select_tokens(
    features: np.ndarray, query: np.ndarray, keep: float | int = 0.15, alpha: float = 0.5, tau: float = 0.0
) -> np.ndarray:
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
    check_shapes(features.shape, query.shape)
    check_weights(alpha, tau)
    frames, patches, width = features.shape
    count = num_kept(patches, keep)
    if count == patches:
        return np.tile(np.arange(patches), (frames, 1))
    relevance, similarity = score_tokens(features, match_width(query.astype(np.float32), width))
    if tau > 0:
        relevance = drop_below(relevance, candidate_counts(relevance, count, tau))
    return max_min_select(similarity, relevance, count, alpha)


def score_tokens(features: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the tokens [F, P, C] with the query [C] and with one another.

    Returns:
        Relevance [F, P] and similarity [F, P, P], float32; similarity is at most 1. Tokens that are identical
        (`identical_tokens`) have the same scores, and a similarity of exactly 1 to each other.
    """
    unit, relevance = unit_tokens(features, query)
    fingerprint = fingerprints(unit)  # [F, P]
    similarity = np.minimum(unit @ unit.swapaxes(1, 2), np.float32(1))  # [F, P, P]; so that no distance is negative
    identical = (
        (similarity > np.float32(IDENTICAL_COSINE))
        & (relevance[:, :, None] == relevance[:, None])
        & (fingerprint[:, :, None] == fingerprint[:, None])
    )
    # The first token that is identical to each; a zero token is identical to none, not even to itself.
    first = np.where(identical.any(axis=2), identical.argmax(axis=2), np.arange(features.shape[1]))  # [F, P]
    similarity[identical] = 1
    columns = np.take_along_axis(similarity, first[:, None], axis=2)
    return relevance, np.take_along_axis(columns, first[:, :, None], axis=1)


def unit_tokens(features: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [F, P, C] scaled to unit length, and their cosines [F, P] with the query [C], both float32."""
    unit = _normalize(features.astype(np.float32))
    # Summed row by row: a matrix product may round identical rows differently by their position.
    return unit, (unit * _normalize(query.astype(np.float32))).sum(axis=-1)


def fingerprints(unit: np.ndarray) -> np.ndarray:
    """Fingerprints (`identical_tokens`) of unit vectors [..., C]: [...] float32."""
    weights = fingerprint_weights(unit.shape[-1])
    return (unit[..., : len(weights)] * weights).sum(axis=-1)


def candidate_counts(relevance: np.ndarray, count: int, tau: float) -> np.ndarray:
    """How many of each frame's most relevant tokens stay candidates when τ > 0: relevance [F, P] → [F]."""
    frames, patches = relevance.shape
    candidates = num_candidates(patches, count)
    if candidates is not None:
        return np.full(frames, candidates)
    return np.maximum((relevance >= np.float32(tau)).sum(axis=1), count)


def drop_below(relevance: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Relevance [F, P] with −inf on all but each frame's `counts` [F] most relevant tokens (ties: lowest index)."""
    order = np.argsort(-relevance, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return np.where(rank < counts[:, None], relevance, np.float32(-np.inf))


def max_min_select(similarity: np.ndarray, relevance: np.ndarray, count: int, alpha: float) -> np.ndarray:
    """Greedy max-min: `argmax r`, then K−1 times `argmax(min over picked of (1 − S) + α · r)`.

    Args:
        similarity: [F, P, P] float32.
        relevance: [F, P] float32; −inf marks a token that may not be picked.
        count: K, at most the number of tokens with finite relevance.
        alpha: α, the weight of relevance.

    Returns:
        [F, K] int64, ascending. Ties go to the lowest index.
    """
    excluded = np.isneginf(relevance)
    weighted = np.where(excluded, relevance, np.float32(alpha) * np.where(excluded, np.float32(0), relevance))
    nearest = np.full_like(relevance, np.inf)  # distance to the nearest picked token, −inf once picked
    frame = np.arange(len(relevance))
    picks = [relevance.argmax(axis=1)]
    for _ in range(count - 1):
        nearest = np.minimum(nearest, 1 - similarity[frame, picks[-1]])
        nearest[frame, picks[-1]] = -np.inf
        picks.append((nearest + weighted).argmax(axis=1))
    return np.sort(np.stack(picks, axis=1), axis=1)


def _normalize(rows: np.ndarray) -> np.ndarray:
    """The last axis scaled to unit L2 norm, as `torch.nn.functional.normalize` does."""
    norm = np.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    return rows / np.maximum(norm, _EPS)
