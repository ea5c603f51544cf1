"""The query vector: one vector for the question, in the language model's embedding space and then in the tower's."""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-12
_STEEPNESS = 3.0  # the last token weighs e³ times as much as the first


def pool_query(embeds: Tensor) -> Tensor:
    """Question embeddings to one query vector.

    `A = softmax(Ê Êᵀ)` over the unit rows Ê mixes each token with its like; the mixed rows are then averaged with
    weights `∝ exp(3 · i/(L−1))`, so that later tokens weigh more.

    Args:
        embeds: [L, D], rows of the language model's input embedding of the tokens after the last placeholder.

    Returns:
        [D] float32. L = 1 gives that row, L = 0 the zero vector.

    Raises:
        ValueError: embeds is not [L, D].

    Source: the release's `extract_question_embedding` (llava_arch.py).
    """
    if embeds.ndim != 2:
        raise ValueError(f"embeds must be [L, D], not {list(embeds.shape)}")
    return pool_queries(embeds[None], torch.full((1,), embeds.shape[0], device=embeds.device))[0]


def pool_queries(embeds: Tensor, lengths: Tensor) -> Tensor:
    """`pool_query` of many questions at once.

    Args:
        embeds: [B, L, D], the questions' embeddings, padded at the end with any finite numbers.
        lengths: [B] int64, the number of tokens of each question.

    Returns:
        [B, D] float32.
    """
    embeds = embeds.float()
    steps = torch.arange(embeds.shape[1], device=embeds.device)  # [L]
    real = steps < lengths[:, None]  # [B, L]
    unit = F.normalize(embeds, dim=-1, eps=_EPS)
    alike = (unit @ unit.transpose(1, 2)).masked_fill(~real[:, None], float("-inf"))  # [B, L, L]
    mixed = (torch.softmax(alike, dim=-1) @ embeds).masked_fill(~real[:, :, None], 0.0)  # [B, L, D]
    position = (steps / (lengths[:, None] - 1).clamp_min(1)).clamp_max(1.0)  # [B, L], 0 … 1
    weights = torch.exp(_STEEPNESS * position) * real
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(
        1.0
    )  # the first is 1: no sum but an empty one is less
    return (mixed * weights[:, :, None]).sum(dim=1)


def match_width(query: Tensor, width: int) -> Tensor:
    """Bring the query to the tower's width: as is, group mean, adaptive average pooling, or tile and cut.

    Args:
        query: [D], or [B, D] for many at once.
        width: C, the width of the tower's features.

    Returns:
        [C] or [B, C].

    Source: the release's `_select_text_cond`.
    """
    depth = query.shape[-1]
    if depth == width:
        return query
    if depth < width:
        copies = -(-width // depth)
        return torch.cat([query] * copies, dim=-1)[..., :width]
    if depth % width == 0:
        return query.unflatten(-1, (width, depth // width)).mean(dim=-1)
    return F.adaptive_avg_pool1d(query.view(-1, depth), width).view(*query.shape[:-1], width)
