"""Qwen2-VL: pictures of any size; every layer of the tower attends to all of a frame.

Tokens are groups of 2 × 2 patches, selected by the mean of their patches' features and merged after the selection;
positions are (time, row, column). A video has one placeholder; two frames of the file make one.
"""

from typing import Any

from torch import Tensor, nn

from ..ports import Stack, Stage
from .base import Modality
from .qwen_vision import (
    QwenVisionStage,
    check_qwen_tower,
    check_runs_of_sections,
    embedded,
    grouped,
    qwen_modalities,
    qwen_stages,
)

MODEL_TYPE = "qwen2_vl"
NAME = "Qwen2-VL"
DECODERS = ("qwen2_vl_text",)


class PlainVisionStage(QwenVisionStage):
    """The tower."""

    def __init__(self, tower: Any):
        super().__init__(tower)
        self.stack = Stack("blocks", len(self.blocks))

    def forward(self, pixel_values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [F, G, m², X] and the patches' rows and columns [G, m², 2] to what `grouped` gives."""
        hidden = embedded(self.patch_embed, pixel_values)
        rotary = self.rotary_pos_emb(hidden, positions.flatten(0, 1))
        for block in self.blocks:
            hidden = block(hidden, *rotary)
        return grouped(hidden, pixel_values.shape[1])


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    check_qwen_tower(config, NAME, ("qwen2_vl_vision", "qwen2_vl"))
    check_runs_of_sections(config)
    return qwen_modalities()


def own_stages(model: nn.Module) -> tuple[Stage, Stage]:
    """`vision` and `project`, see `Family.own_stages`."""
    tower: Any = model.get_submodule("model.visual")
    return qwen_stages(tower, PlainVisionStage(tower), (), tower.config.embed_dim, tower.config.hidden_size)
