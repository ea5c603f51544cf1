"""LLaVA-NeXT-Video: images as anyres tiles with newline tokens, video frames pooled before the projector.

As in the release, tiles are not pruned unless asked for (docs/method.md); each tile is then a frame of its own.
"""

from typing import Any

from torch import nn

from .base import Modality, UnsupportedModelError, VisionStage, drops_class_token, grid_side, has_class_token

MODEL_TYPE = "llava_next_video"
NAME = "LLaVA-NeXT-Video"


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side = grid_side(config.vision_config)
    if not drops_class_token(config) and has_class_token(config.vision_config):
        raise UnsupportedModelError(
            "LLaVA-NeXT-Video needs a square grid: set vision_feature_select_strategy to 'default'"
        )
    pooled = side // config.spatial_pool_stride
    return {
        "image": Modality("vision", "features", side, side, tiled=True),
        "video": Modality("vision", "pooled_features", pooled, pooled),
    }


def vision_stages(model: nn.Module) -> dict[str, nn.Module]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    pool = model.get_submodule("model.vision_resampler")
    return {"vision": VisionStage(tower, config.vision_feature_layer, drops_class_token(config), pool)}
