"""LLaVA-1.5: one frame of P patches per image, no pool."""

from typing import Any

from torch import nn

from .base import Modality, VisionStage, check_strategy, grid_side, has_class_token

MODEL_TYPE = "llava"
NAME = "LLaVA-1.5"


def modalities(config: Any) -> dict[str, Modality]:
    side = grid_side(config.vision_config)
    leading = int(not check_strategy(config) and has_class_token(config.vision_config))
    return {"image": Modality("vision", "features", side, side, leading)}


def vision_stages(model: nn.Module) -> dict[str, nn.Module]:
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    return {"vision": VisionStage(tower, config.vision_feature_layer, check_strategy(config))}
