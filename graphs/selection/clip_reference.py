"""Selection over a whole clip in eager PyTorch: one budget for all frames, spent by the same greedy rule.

Frames that repeat one another get few tokens, and what is new gets many. Nothing of size [F·P, F·P] is made: each pick
costs one row of similarities, O(K · F · P · C) in all.

The greedy choice may end early, at the first token whose score is below a threshold: the number of tokens is then the
clip's own (`keep="auto"`).
"""

import math

import torch
from torch import Tensor

from .counts import check_clip, check_shapes, check_weights, num_kept
from .identical_tokens import IDENTICAL_COSINE
from .query_vector import match_width
from .reference import fingerprints, unit_tokens


def select_clip_tokens(
    features: Tensor,
    query: Tensor,
    keep: float | int = 0.15,
    alpha: float = 0.5,
    least: int = 1,
    threshold: float = -math.inf,
) -> Tensor:
    """Indices of the visual tokens to keep of all frames together.

    Args:
        features: [F, P, C], visual tokens before the projector, any float type.
        query: [D], from `pool_query`; brought to width C here.
        keep: float, the ratio of all tokens, in (0, 1]; int, the count K of each frame on average. F · K tokens are kept,
            or fewer where the threshold ends the choice.
        alpha: weight of relevance against diversity.
        least: tokens kept of each frame at least, from 1 to K.
        threshold: the choice ends at the first token whose score `min over picked of (1 − S) + α · r` is below; only frames
            still short of their least get tokens then. −inf never ends it.

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
    unit, relevance = unit_tokens(features, match_width(query.float(), width))
    unit, relevance = unit.flatten(0, 1), relevance.flatten()  # [F·P, C], [F·P]
    first = first_identical(unit, relevance)
    weighted = alpha * relevance
    frame = torch.arange(frames, device=unit.device).repeat_interleave(patches)  # of each token
    owed = torch.full((frames,), least, device=unit.device)  # tokens that each frame is still short of
    nearest = torch.full_like(relevance, math.inf)  # distance to the nearest picked token, −inf once picked
    pick, picks = relevance.argmax(), []
    for left in range(frames * count - 1, -1, -1):
        picks.append(pick)
        owed[frame[pick]] = (owed[frame[pick]] - 1).clamp_min(0)
        source = first[pick]
        row = torch.where(first == source, 1.0, (unit @ unit[source]).clamp_max(1.0)[first])
        nearest = torch.minimum(nearest, 1 - row)
        nearest[pick] = -math.inf
        score = nearest + weighted
        spent = bool(score.max() < threshold)
        if left == 0 or (spent and not owed.any()):
            break
        if spent or left <= int(owed.sum()):
            score = torch.where(owed[frame] > 0, score, -math.inf)
        pick = score.argmax()
    return torch.stack(picks).sort().values


def first_identical(unit: Tensor, relevance: Tensor) -> Tensor:
    """Of each token the first that is identical to it (`identical_tokens`): itself where it is alone.

    Sorted by fingerprint, and by relevance where that is equal, identical tokens are neighbours.

    Args:
        unit: [N, C] float32, unit vectors.
        relevance: [N] float32.

    Returns:
        [N] int64.
    """
    fingerprint = fingerprints(unit)
    order = relevance.argsort(descending=True, stable=True)
    order = order[fingerprint[order].argsort(descending=True, stable=True)]
    here, before = order[1:], order[:-1]
    same = (
        (fingerprint[here] == fingerprint[before])
        & (relevance[here] == relevance[before])
        & ((unit[here] * unit[before]).sum(dim=-1) > IDENTICAL_COSINE)
    )
    run = torch.cat([same.new_zeros(1), ~same]).cumsum(0)  # the number of each token's run of identical ones
    found = torch.full_like(order, len(order)).scatter_reduce(0, run, order, "amin")
    return torch.empty_like(order).scatter(0, order, found[run])
