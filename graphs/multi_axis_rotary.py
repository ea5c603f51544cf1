"""Rotary embeddings over three positions, (time, row, column), and visual embeddings added to the first layers.

Qwen's multimodal rotary embedding gives each channel the angle of one of the three axes. Which one is written out with
slices here, without the assignments in place and the buffers that transformers needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AXES = 3


def axes_of(decoder: Any) -> int:
    """Positions of a token: 3 where the decoder's rotary embedding is multimodal, else 1."""
    return 1 if getattr(getattr(decoder, "rotary_emb", None), "mrope_section", None) is None else AXES


class MultiAxisRotary(nn.Module):
    """Cosines and sines for positions of three axes.

    Args:
        rotary: transformers' own, for its frequencies and the channels of each axis.
        interleaved: whether axes take turns channel by channel (Qwen3-VL) or have a run of channels each (Qwen2.5-VL).
    """

    def __init__(self, rotary: Any, interleaved: bool):
        super().__init__()
        self.rotary = rotary
        self.section, self.interleaved = list(rotary.mrope_section), interleaved

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """For position_ids [3, B, S]: cosines and sines [B, S, W] in the dtype of x."""
        half = self.rotary.inv_freq.shape[0]
        by_axis = position_ids.permute(1, 2, 0)  # [batch, tokens, axes]
        if self.interleaved:  # t h w t h w … and t from where h and w are used up
            turns = self.section[1]
            parts = [by_axis.repeat(1, 1, turns), by_axis[..., :1].expand(-1, -1, half - AXES * turns)]
        else:
            parts = [by_axis[..., axis : axis + 1].expand(-1, -1, size) for axis, size in enumerate(self.section)]
        angles = torch.cat(parts, dim=-1).float() * self.rotary.inv_freq.float()  # [batch, tokens, half]
        angles = torch.cat((angles, angles), dim=-1)
        scaling = self.rotary.attention_scaling
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)


@contextmanager
def rotary_of(decoder: Any, rotary: nn.Module | None) -> Iterator[None]:
    """Run a decoder with another rotary embedding within the block, then restore its own; None leaves it."""
    before = decoder.rotary_emb
    if rotary is not None:
        decoder.rotary_emb = rotary
    try:
        yield
    finally:
        decoder.rotary_emb = before


@contextmanager
def added_after_layers(decoder: Any, embeds: Tensor | None) -> Iterator[None]:
    """Add embeds [T, B, S, D] to what comes out of a decoder's first T layers, within the block.

    What transformers does by the mask of visual tokens, which cannot be traced: rows of text are zeros here.
    """
    handles = [
        layer.register_forward_hook(lambda module, inputs, output, added=added: output + added)
        for layer, added in zip(decoder.layers, () if embeds is None else embeds, strict=False)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
