"""Qwen2.5-VL: pictures of any size; most of the tower's layers attend within windows.

Tokens are groups of 2 × 2 patches, selected by the mean of their patches' features and merged after the selection;
positions are (time, row, column). A video has one placeholder; two frames of the file make one, and positions in time
follow the seconds between them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..ports import Port, Stage
from .base import Modality, UnsupportedModelError
from .qwen_vision import (
    QwenVisionStage,
    check_qwen_tower,
    check_runs_of_sections,
    embedded,
    grouped,
    qwen_modalities,
    qwen_stages,
)

MODEL_TYPE = "qwen2_5_vl"
NAME = "Qwen2.5-VL"
DECODERS = ("qwen2_5_vl_text",)


class WindowedVisionStage(QwenVisionStage):
    """The tower over windows that are all of one size, the smaller ones at the edges filled up.

    Patches are gathered into windows before a run of layers that attend within them, and put back behind it, where a
    layer attends to all.
    """

    def __init__(self, tower: Any):
        super().__init__(tower)
        self.whole = frozenset(tower.fullatt_block_indexes)

    def forward(
        self, pixel_values: Tensor, positions: Tensor, patches: Tensor, lengths: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pixels and grid to the groups' features and rows.

        Args:
            pixel_values: [F, G, m², X], normalised.
            positions: [G, m², 2] int64, row and column of each patch.
            patches: [N, S] int64, those in each of N windows, its own first; what fills it up are any.
            lengths: [N] int64, how many are its own.
            slots: [G, m²] int64, where each patch is in `patches`, flat.

        Returns:
            As `grouped`.
        """
        gathered, back = patches.flatten(), slots.flatten()
        frames, (windows, size) = pixel_values.shape[0], patches.shape
        hidden = embedded(self.patch_embed, pixel_values)  # [frames, patches, channels]
        width = hidden.shape[2]
        everywhere = self.rotary_pos_emb(hidden, positions.flatten(0, 1))  # each [patches, head width]
        within = [
            part[gathered].reshape(1, windows, 1, size, -1).expand(frames, -1, -1, -1, -1).flatten(0, 1)
            for part in everywhere
        ]  # each [frames · windows, 1, size, head width]
        own = torch.arange(size, device=lengths.device)[None] < lengths[:, None]  # [windows, size]
        # Written out for every query: ONNX Runtime's Attention takes no mask [.., 1, keys].
        mask = own[None, :, None, None, :].expand(frames, -1, -1, size, -1).flatten(0, 1)
        apart = False
        for number, block in enumerate(self.blocks):
            whole = number in self.whole
            if not whole and not apart:
                hidden = hidden[:, gathered].reshape(frames * windows, size, width)
            if whole and apart:
                hidden = hidden.reshape(frames, windows * size, width)[:, back]
            apart = not whole
            hidden = block(hidden, *within, mask) if apart else block(hidden, *everywhere)
        if apart:
            hidden = hidden.reshape(frames, windows * size, width)[:, back]
        return grouped(hidden, pixel_values.shape[1])


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    check_qwen_tower(config, NAME, ("qwen2_5_vl_vision", "qwen2_5_vl"))
    check_runs_of_sections(config)
    vision = config.vision_config
    group = vision.patch_size * vision.spatial_merge_size
    if vision.window_size < group or vision.window_size % group:
        raise UnsupportedModelError(
            f"windows of {vision.window_size} pixels are not supported: they must be a multiple of {group}, a token's side"
        )
    return qwen_modalities()


def own_stages(model: nn.Module) -> tuple[Stage, Stage]:
    """`vision` and `project`, see `Family.own_stages`."""
    tower: Any = model.get_submodule("model.visual")
    config = tower.config
    size = (config.window_size // config.patch_size) ** 2
    windows = (
        Port("window_patches", ("windows", size), torch.int64),
        Port("window_lengths", ("windows",), torch.int64),
        Port("window_slots", ("groups", config.spatial_merge_size**2), torch.int64),
    )
    return qwen_stages(tower, WindowedVisionStage(tower), windows, config.hidden_size, config.out_hidden_size)
