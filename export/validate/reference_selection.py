"""Which tokens eager PyTorch keeps of all images and videos of a request: what the runtime's `selector` is held to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graphs.selection.clip_reference import select_clip_tokens
from ...graphs.selection.counts import num_kept
from ...graphs.selection.reference import select_tokens


def kept_masks(
    features: Sequence[Tensor], kinds: Sequence[str], wholes: Sequence[bool], query: Tensor, request: Any
) -> list[Tensor]:
    """For each image or video [F, P] bool, true where a token is kept.

    Args:
        features: of each, [F, P, C].
        kinds: "image" or "video".
        wholes: whether it is not pruned.
        query: [D], from `pool_query`.
        request: a `Request`.
    """
    masks = [torch.ones(one.shape[:2], dtype=torch.bool) for one in features]
    groups: dict[Any, list[int]] = {}
    for at, (one, kind, whole) in enumerate(zip(features, kinds, wholes, strict=True)):
        if not whole:
            shares = request.scope == "clip" and kind == "image"
            groups.setdefault(one.shape[1] if shares else f"alone {at}", []).append(at)
    for members in groups.values():
        together = torch.cat([features[at] for at in members])
        count = num_kept(together.shape[1], request.keep)
        chosen = torch.zeros(together.shape[:2], dtype=torch.bool)
        if request.scope == "clip":
            chosen.view(-1)[select_clip_tokens(together, query, count, request.alpha, request.min_per_frame)] = True
        else:
            chosen.scatter_(1, select_tokens(together, query, count, request.alpha, request.tau), True)
        for at, part in zip(members, chosen.split([len(features[at]) for at in members]), strict=True):
            masks[at] = part
    return masks


def kept_indices(masks: Sequence[Tensor]) -> list[np.ndarray]:
    """Of each image or video [F, K]; of one whose frames differ in number [1, K] for each frame."""
    kept = []
    for mask in masks:
        rows = [row.nonzero()[:, 0].numpy() for row in mask]
        alike = len({len(row) for row in rows}) == 1
        kept += [np.stack(rows)] if alike else [row[None] for row in rows]
    return kept
