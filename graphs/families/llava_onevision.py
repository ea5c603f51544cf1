"""LLaVA-OneVision: images as anyres tiles with newline tokens, video frames scaled down by bilinear interpolation.

transformers scales a video's tokens down behind the projector, where each of the cells that are left is a fixed mix of up
to four patches. Cells are selected here, by the same mix of the tower's features; the patches of the kept ones are
projected, and then mixed. With all cells kept that is what transformers does.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Modality, VisionModule, VisionStage, drops_class_token
from .llava_next import tile_side

MODEL_TYPE = "llava_onevision"
NAME = "LLaVA-OneVision"


class CellPool(nn.Module):
    """Features of cells: half as many along each side, rounded up.

    Args:
        side: of the grid of patches.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side, self.cells = side, cells_along(side)

    def forward(self, features: Tensor) -> Tensor:
        """[F, side², C] → [F, cells², C]."""
        frames, _, channels = features.shape
        grid = features.reshape(frames, self.side, self.side, channels).permute(0, 3, 1, 2)
        scaled = F.interpolate(grid, size=(self.cells, self.cells), mode="bilinear")
        return scaled.flatten(2).transpose(1, 2)


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    side = tile_side(config)
    cells = cells_along(side)
    return {
        "image": Modality("vision", "features", side, side, tiled=True),
        "video": Modality("vision", "pooled_features", cells, cells, mixed_output="features"),
    }


def vision_stages(model: nn.Module) -> dict[str, VisionModule]:
    """Vision stages by name, see `Family.vision_stages`."""
    config: Any = model.config
    tower: Any = model.get_submodule("model.vision_tower")
    pool = CellPool(tile_side(config))
    return {"vision": VisionStage(tower, config.vision_feature_layer, drops_class_token(config), pool)}


def cells_along(side: int) -> int:
    """Cells along a side of so many patches."""
    return -(-side // 2)
