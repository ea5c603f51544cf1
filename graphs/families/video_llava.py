"""Video-LLaVA: an image tower and a video tower of the same shape.

transformers drops the class token of images only; a video frame's class token stays, as the first of its tokens, and
is a candidate for selection like any other.
"""

from typing import Any

from torch import nn

from .base import Modality, VisionModule, VisionStage, drops_class_token, has_class_token, square_grid

MODEL_TYPE = "video_llava"
NAME = "Video-LLaVA"


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side, leading = square_grid(config)
    return {
        "image": Modality("vision", "features", side, side, leading),
        "video": Modality("vision_video", "features", side, side, int(has_class_token(config.vision_config))),
    }


def vision_stages(model: nn.Module) -> dict[str, VisionModule]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    image_tower: Any = model.get_submodule("model.image_tower")
    video_tower: Any = model.get_submodule("model.video_tower")
    return {
        "vision": VisionStage(image_tower, config.vision_feature_layer, drops_class_token(config)),
        "vision_video": VisionStage(video_tower, config.vision_feature_layer, drop_class=False),
    }
