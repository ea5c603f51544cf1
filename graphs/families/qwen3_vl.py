"""Qwen3-VL: pictures of any size; tokens are groups of 2 × 2 patches; positions are (time, row, column).

Groups are selected by the mean of their patches' features and merged after the selection. The same groups are kept of
the tower's tapped layers, whose embeddings are added to the decoder's first layers. A video's frames have a time stamp
each, and a placeholder each; two frames of the file make one.
"""

from typing import Any

from torch import nn

from ..ports import Stage
from .base import Modality, UnsupportedModelError
from .qwen_vision import check_qwen, qwen_stages

MODEL_TYPE = "qwen3_vl"
NAME = "Qwen3-VL"
DECODERS = ("qwen3_vl_text",)
_TOWERS = ("qwen3_vl_vision", "qwen3_vl")
_SIDE = 32  # groups along a side of a picture of usual size; a picture has the grid that fits it


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    if config.vision_config.model_type not in _TOWERS:
        raise UnsupportedModelError(
            f"vision tower '{config.vision_config.model_type}' is not supported; supported of {NAME} is: {_TOWERS[0]}"
        )
    check_qwen(config)
    return {
        kind: Modality("vision", "features", _SIDE, _SIDE, dynamic=True, rows_output="rows")
        for kind in ("image", "video")
    }


def own_stages(model: nn.Module) -> tuple[Stage, Stage]:
    """`vision` and `project`, see `Family.own_stages`."""
    return qwen_stages(model)
