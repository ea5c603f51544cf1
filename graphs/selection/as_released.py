"""The authors' own way of choosing tokens, restated: what the optimised selection is timed against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def release_select(frames: Tensor, query: Tensor, count: int, alpha: float = 0.5) -> list[Tensor]:
    """The release's algorithm for τ = 0: frame after frame, the minimum taken anew over all picks.

    Args:
        frames: [F, P, C], in the features' own precision as in the release; query [C] likewise.
        count: K, tokens kept of each frame.

    Returns:
        Of each frame the kept indices [K], ascending.

    Source: `_select_text_cond` of the release (llava_arch.py).
    """
    kept = []
    for tokens in frames:
        unit = F.normalize(tokens, dim=1)
        relevance = unit @ F.normalize(query, dim=0)
        dist = 1.0 - unit @ unit.T
        picks = torch.empty(count, dtype=torch.int64, device=tokens.device)
        picks[0] = relevance.argmax()
        for k in range(1, count):
            score = dist[picks[:k]].amin(dim=0) + alpha * relevance
            free = torch.ones_like(relevance, dtype=torch.bool)
            free[picks[:k]] = False
            score[~free] = float("-inf")
            picks[k] = score.argmax()
        kept.append(picks.sort().values)
    return kept
