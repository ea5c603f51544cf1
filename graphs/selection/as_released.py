"""The authors' own way of choosing tokens, restated: what the optimised selection is timed against and compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def release_select(frames: Tensor, query: Tensor, count: int, alpha: float = 0.5, tau: float = 0.0) -> list[Tensor]:
    """The release's algorithm: frame after frame, the minimum taken anew over all picks.

    It works in the precision of its inputs, as the release does; in float64 it is the truth that float32 is held to.

    Args:
        frames: [F, P, C].
        query: [C], of the same dtype.
        count: K, tokens kept of each frame.
        alpha: α, the weight of relevance.
        tau: τ, the candidate filter, off at 0.

    Returns:
        Of each frame the kept indices [K], ascending.

    Source: `_select_text_cond` of the release (llava_arch.py), without its query of another width.
    """
    direction = F.normalize(query, dim=0)  # [C]
    return [_select_in_frame(F.normalize(tokens, dim=1), direction, count, alpha, tau) for tokens in frames]


def _select_in_frame(unit: Tensor, direction: Tensor, count: int, alpha: float, tau: float) -> Tensor:
    """Kept indices [K] of one frame from its unit vectors [P, C] and that of the query [C]."""
    patches = len(unit)
    if count >= patches:
        return torch.arange(patches, device=unit.device)
    relevance = unit @ direction  # [P]
    candidates = torch.arange(patches, device=unit.device)  # [N] indices
    if tau > 0:
        above = relevance >= tau
        if count < patches // 2:
            candidates = relevance.topk(min(patches, max(3 * count, count + 1))).indices
        elif above.sum() < count:
            candidates = relevance.topk(count).indices
        else:
            candidates = candidates[above]
    unit, relevance = unit[candidates], relevance[candidates]
    distance = 1.0 - unit @ unit.T  # [N, N]
    picks = torch.empty(count, dtype=torch.int64, device=unit.device)
    picks[0] = relevance.argmax()
    for k in range(1, count):
        score = distance[picks[:k]].amin(dim=0) + alpha * relevance
        score[picks[:k]] = float("-inf")
        picks[k] = score.argmax()
    return candidates[picks].sort().values
