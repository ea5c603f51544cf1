"""LLaVA-1.5: one frame of P patches per image, no pool."""

from typing import Any

from torch import nn

from .base import Modality, VisionStage, drops_class_token, grid_side, has_class_token

MODEL_TYPE = "llava"
NAME = "LLaVA-1.5"


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side = grid_side(config.vision_config)
    leading = int(not drops_class_token(config) and has_class_token(config.vision_config))
    return {"image": Modality("vision", "features", side, side, leading)}


def vision_stages(model: nn.Module) -> dict[str, nn.Module]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    return {"vision": VisionStage(tower, config.vision_feature_layer, drops_class_token(config))}
