"""LLaVA-1.5: one frame of P patches per image, no pool."""

from typing import Any

from torch import nn

from .base import Modality, VisionModule, VisionStage, drops_class_token, square_grid

MODEL_TYPE = "llava"
NAME = "LLaVA-1.5"


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side, leading = square_grid(config)
    return {"image": Modality("vision", "features", side, side, leading)}


def vision_stages(model: nn.Module) -> dict[str, VisionModule]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    return {"vision": VisionStage(tower, config.vision_feature_layer, drops_class_token(config))}
