"""LLaVA-NeXT (LLaVA-1.6): images as anyres tiles with newline tokens; no videos.

As in the release, tiles are not pruned unless asked for (docs/method.md); each tile is then a frame of its own.
"""

from typing import Any

from torch import nn

from .base import Modality, UnsupportedModelError, VisionModule, VisionStage, drops_class_token, square_grid

MODEL_TYPE = "llava_next"
NAME = "LLaVA-NeXT"


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side = tile_side(config)
    return {"image": Modality("vision", "features", side, side, tiled=True)}


def vision_stages(model: nn.Module) -> dict[str, VisionModule]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    return {"vision": VisionStage(tower, config.vision_feature_layer, drops_class_token(config))}


def tile_side(config: Any) -> int:
    """Patches along a side of a tile, of which the grid of all tiles is made.

    Raises:
        UnsupportedModelError: a class token would stand between them.
    """
    side, leading = square_grid(config)
    if leading:
        raise UnsupportedModelError("tiles need a square grid: set vision_feature_select_strategy to 'default'")
    return side
