"""Selection over a whole clip in numpy: what `clip_reference` computes, for places without torch."""

import math

import numpy as np

from .counts import check_clip, check_shapes, check_weights, num_kept
from .identical_tokens import IDENTICAL_COSINE
from .numpy_selection import fingerprints, match_width, unit_tokens


def select_clip_tokens(
    features: np.ndarray,
    query: np.ndarray,
    keep: float | int = 0.15,
    alpha: float = 0.5,
    least: int = 1,
    threshold: float = -math.inf,
) -> np.ndarray:
    """Indices of the visual tokens to keep of all frames together; see `clip_reference.select_clip_tokens`.

    Args:
        features: [F, P, C], visual tokens before the projector, any float type.
        query: [D], from `pool_query`; brought to width C here.
        keep: float, the ratio of all tokens, in (0, 1]; int, the count K of each frame on average.
        alpha: weight of relevance against diversity.
        least: tokens kept of each frame at least, from 1 to K.
        threshold: the choice ends at the first token whose score is below it; −inf never ends it.

    Returns:
        [N] int64, ascending: frame · P + patch. N = F · K without a threshold.

    Raises:
        ValueError: a shape or setting out of range.
    """
    check_shapes(features.shape, query.shape)
    check_weights(alpha, 0.0)
    frames, patches, width = features.shape
    count = num_kept(patches, keep)
    check_clip(count, least, threshold)
    unit, relevance = unit_tokens(features, match_width(query.astype(np.float32), width))
    unit, relevance = unit.reshape(-1, width), relevance.ravel()  # [F·P, C], [F·P]
    first = first_identical(unit, relevance)
    weighted = np.float32(alpha) * relevance
    frame = np.repeat(np.arange(frames), patches)  # of each token
    owed = np.full(frames, least)  # tokens that each frame is still short of
    nearest = np.full_like(relevance, np.inf)  # distance to the nearest picked token, −inf once picked
    pick, picks = int(relevance.argmax()), []
    for left in range(frames * count - 1, -1, -1):
        picks.append(pick)
        owed[frame[pick]] = max(0, owed[frame[pick]] - 1)
        source = first[pick]
        row = np.where(first == source, np.float32(1), np.minimum(unit @ unit[source], np.float32(1))[first])
        nearest = np.minimum(nearest, 1 - row)
        nearest[pick] = -np.inf
        score = nearest + weighted
        spent = score.max() < np.float32(threshold)
        if left == 0 or (spent and not owed.any()):
            break
        if spent or left <= owed.sum():
            score = np.where(owed[frame] > 0, score, np.float32(-np.inf))
        pick = int(score.argmax())
    return np.sort(np.array(picks))


def first_identical(unit: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Of each token the first that is identical to it: unit vectors [N, C] and relevance [N] → [N] int64."""
    fingerprint = fingerprints(unit)
    order = np.lexsort((-relevance, -fingerprint))  # stable: the lowest index of identical tokens is first
    here, before = order[1:], order[:-1]
    same = (
        (fingerprint[here] == fingerprint[before])
        & (relevance[here] == relevance[before])
        & ((unit[here] * unit[before]).sum(axis=-1) > np.float32(IDENTICAL_COSINE))
    )
    run = np.append(0, np.cumsum(~same))  # the number of each token's run of identical ones
    heads = order[np.append(True, ~same)]
    first = np.empty_like(order)
    first[order] = heads[run]
    return first
