"""Qwen3-VL: pictures of any size; tokens are groups of 2 × 2 patches; positions are (time, row, column).

Groups are selected by the mean of their patches' features and merged after the selection. The same groups are kept of
the tower's tapped layers, whose embeddings are added to the decoder's first layers. A video's frames have a time stamp
each, and a placeholder each; two frames of the file make one.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..ports import Port, Stack, Stage
from .base import Modality, UnsupportedModelError
from .qwen_vision import (
    QwenVisionStage,
    check_qwen_tower,
    embedded,
    grouped,
    qwen_modalities,
    qwen_stages,
    sections_of,
)

MODEL_TYPE = "qwen3_vl"
NAME = "Qwen3-VL"
DECODERS = ("qwen3_vl_text",)


class TappedVisionStage(QwenVisionStage):
    """The tower, with learned positions interpolated to the grid and tapped layers."""

    def __init__(self, tower: Any):
        super().__init__(tower)
        self.pos_embed = tower.pos_embed
        self.taps = tuple(number for number in tower.deepstack_visual_indexes if number < len(self.blocks))
        self.stack = Stack("blocks", len(self.blocks), taps=self.taps, tapped="rows")

    def forward(
        self, pixel_values: Tensor, positions: Tensor, interp_indices: Tensor, interp_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pixels and grid to the groups' features and rows.

        Args:
            pixel_values: [F, G, m², X], normalised.
            positions: [G, m², 2] int64, row and column of each patch.
            interp_indices, interp_weights: [G, m², 4], where the learned positions are looked up, and how much counts.

        Returns:
            As `grouped`.
        """
        hidden = embedded(self.patch_embed, pixel_values)
        learned = self.pos_embed(interp_indices.flatten(0, 1)) * interp_weights.flatten(0, 1)[:, :, None]
        hidden = hidden + learned.sum(1).to(hidden.dtype)  # [frames, patches, channels]
        rotary = self.rotary_pos_emb(hidden, positions.flatten(0, 1))
        taps = []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, *rotary)
            if number in self.taps:
                taps.append(hidden)
        return grouped(hidden, pixel_values.shape[1], taps)


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    check_qwen_tower(config, NAME, ("qwen3_vl_vision", "qwen3_vl"))
    section, half = sections_of(config, [24, 20, 20])
    if len(section) != 3 or section[1] != section[2] or 3 * section[1] > half:
        raise UnsupportedModelError(f"rotary sections {section} of heads of {2 * half} channels are not supported")
    if not config.vision_config.deepstack_visual_indexes:
        raise UnsupportedModelError("a Qwen3-VL without tapped layers (deepstack_visual_indexes) is not supported")
    return qwen_modalities()


def own_stages(model: nn.Module) -> tuple[Stage, Stage]:
    """`vision` and `project`, see `Family.own_stages`."""
    tower: Any = model.get_submodule("model.visual")
    patches = tower.config.spatial_merge_size**2
    learned = (
        Port("interp_indices", ("groups", patches, 4), torch.int64),
        Port("interp_weights", ("groups", patches, 4), torch.float32),
    )
    config = tower.config
    return qwen_stages(tower, TappedVisionStage(tower), learned, config.hidden_size, config.out_hidden_size)
