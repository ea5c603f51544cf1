"""The query vector: one vector for the question, in the language model's embedding space and then in the tower's."""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-12


def pool_query(embeds: Tensor) -> Tensor:
    """Question embeddings to one query vector.

    `A = softmax(Ê Êᵀ)` over the unit rows Ê mixes each token with its like; the mixed rows are then averaged with
    weights `∝ exp(3 · i/(L−1))`, so that later tokens weigh more.

    Args:
        embeds: [L, D], rows of the language model's input embedding of the tokens after the last placeholder.

    Returns:
        [D] float32. L = 1 gives that row, L = 0 the zero vector.

    Source: the release's `extract_question_embedding` (llava_arch.py).
    """
    if embeds.ndim != 2:
        raise ValueError(f"embeds must be [L, D], not {list(embeds.shape)}")
    embeds = embeds.float()
    length = embeds.shape[0]
    unit = F.normalize(embeds, dim=-1, eps=_EPS)
    mixed = torch.softmax(unit @ unit.T, dim=-1) @ embeds  # [L, D]
    position = torch.arange(length, device=embeds.device, dtype=torch.float32) / max(length - 1, 1)
    weights = torch.exp(3.0 * position)  # [L]
    return (mixed * (weights / weights.sum())[:, None]).sum(dim=0)


def match_width(query: Tensor, width: int) -> Tensor:
    """Bring the query [D] to the tower's width C: as is, group mean, adaptive average pooling, or tile and cut.

    Source: the release's `_select_text_cond`.
    """
    depth = query.shape[0]
    if depth == width:
        return query
    if depth < width:
        return query.repeat(-(-width // depth))[:width]
    if depth % width == 0:
        return query.view(width, depth // width).mean(dim=1)
    return F.adaptive_avg_pool1d(query[None], width)[0]
