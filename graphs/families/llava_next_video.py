"""LLaVA-NeXT-Video: images as anyres tiles with newline tokens, video frames pooled before the projector.

As in the release, tiles are not pruned unless asked for (docs/method.md); each tile is then a frame of its own.
"""

from typing import Any

from torch import nn

from .base import Modality, VisionModule, VisionStage, drops_class_token
from .llava_next import tile_side

MODEL_TYPE = "llava_next_video"
NAME = "LLaVA-NeXT-Video"


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side = tile_side(config)
    pooled = side // config.spatial_pool_stride
    return {
        "image": Modality("vision", "features", side, side, tiled=True),
        "video": Modality("vision", "pooled_features", pooled, pooled),
    }


def vision_stages(model: nn.Module) -> dict[str, VisionModule]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    pool = model.get_submodule("model.vision_resampler")
    return {"vision": VisionStage(tower, config.vision_feature_layer, drops_class_token(config), pool)}
