"""The model over packed rows: many questions behind one picture, each blind to the others (`packing`)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from ...graphs.selection.query_vector import pool_queries
from .evaluate_eager import constant, select
from .model import BOS
from .packing import NOTHING, encode


def packed_mask(prefix: int, block: Tensor) -> Tensor:
    """Who attends to whom: [B, 1, S, S] bool, S = prefix + T, from the blocks [B, T].

    The prefix is causal; a question sees the whole prefix and itself, not its neighbours.
    """
    batch, row = block.shape
    total = prefix + row
    causal = torch.ones(total, total, dtype=torch.bool, device=block.device).tril()
    mask = causal.expand(batch, -1, -1).clone()
    mask[:, prefix:, prefix:] &= block[:, :, None] == block[:, None, :]
    return mask[:, None]


def prefix_embeds(model: LlavaForConditionalGeneration, visual: Tensor | None, batch: int) -> Tensor:
    """Embeddings of the prompt up to the last picture: visual [B, F, K, D] → [B, L, D]."""
    embed = model.get_input_embeddings()
    device = next(model.parameters()).device
    head = embed(constant((BOS, *encode("USER: ")), device)).expand(batch, -1, -1)
    if visual is None:
        return head
    newline = embed(constant(encode("\n"), device)).expand(batch, -1, -1)
    parts = [head]
    for frame in range(visual.shape[1]):
        parts += [visual[:, frame].to(head.dtype)] + ([newline] if frame < visual.shape[1] - 1 else [])
    return torch.cat(parts, dim=1)


def answer_logits(model: LlavaForConditionalGeneration, visual: Tensor | None, rows: Tensor) -> Tensor:
    """Logits [B, T, V] of packed rows [B, 6, T] behind their pictures' visual embeddings [B, F, K, D]."""
    prefix = prefix_embeds(model, visual, len(rows))
    length = prefix.shape[1]
    embeds = torch.cat([prefix, model.get_input_embeddings()(rows[:, 0])], dim=1)
    before = torch.arange(length, device=rows.device).expand(len(rows), -1)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=packed_mask(length, rows[:, 1]),
        position_ids=torch.cat([before, length + rows[:, 2]], dim=1),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, length:])


def right_answers(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Per token [B, T]: does it start an answer, and is that whole answer right (teacher-forced)?"""
    target, block = rows[:, 3], rows[:, 1]
    wrong = (logits.argmax(-1) != target) & (target != NOTHING)
    same = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
    any_wrong = (same & wrong[:, None, :]).any(-1)
    starts = (target != NOTHING) & F.pad(target[:, :-1] == NOTHING, (1, 0), value=True)
    return starts, ~any_wrong


QUERY = 24  # no question of the task is longer, in tokens


def marked_queries(model: LlavaForConditionalGeneration, rows: Tensor) -> Tensor:
    """The query vectors of the marked questions of packed rows: [B, 6, T] → [B, D] float32."""
    marked = rows[:, 5]
    first, length = marked.argmax(dim=1), marked.sum(dim=1)
    offset = torch.arange(QUERY, device=rows.device)
    ids = rows[:, 0].gather(1, (first[:, None] + offset).clamp_max(rows.shape[-1] - 1))  # [B, L]
    return pool_queries(model.get_input_embeddings()(ids), length)


@torch.no_grad()
def select_marked(
    model: LlavaForConditionalGeneration, features: Tensor, rows: Tensor, keep: float, rule: str = "rediprune"
) -> Tensor:
    """What a rule keeps for each row's marked question: [B, F, P, C] and rows [B, 6, T] → [B, F, K]."""
    with torch.autocast(features.device.type, enabled=False):
        return select(rule, features, marked_queries(model, rows), keep)


def take(features: Tensor, picked: Tensor) -> Tensor:
    """[B, F, P, C] at [B, F, K] → [B, F, K, C]."""
    return features.gather(2, picked[..., None].expand(-1, -1, -1, features.shape[-1]))
