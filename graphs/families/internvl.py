"""InternVL (2.5, 3, 3.5; transformers' `-hf` form): tiles and a thumbnail, each a frame; 2 × 2 patches become one token.

The pixel shuffle that makes one token of 2 × 2 patches belongs to the vision stage: what is selected, and projected, are
its tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..ports import Stack
from .base import Modality, UnsupportedModelError, VisionModule, image_side, patch_side

MODEL_TYPE = "internvl"
NAME = "InternVL"
_TOWER = "internvl_vision"


class InternVisionStage(VisionModule):
    """The tower up to the chosen layer, without the class token, then the pixel shuffle.

    Args:
        model: a transformers model of the family.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        config: Any = model.config
        self.tower: Any = model.get_submodule("model.vision_tower")
        self.merge = _merge(config)
        self.pool = None
        self.channels = config.vision_config.hidden_size * self.merge**2
        count = config.vision_config.num_hidden_layers + 1
        self.layers = config.vision_feature_layer % count
        self.normed = self.layers == count - 1  # transformers takes the last layer's output after the final norm
        self.stack = Stack("tower.encoder.layer", self.layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [F, 3, H, W] → features [F, P, C]."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embeddings(pixel_values)  # [frames, patches, channels]
        hidden = torch.cat([embeddings.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        if embeddings.position_embeddings is not None:
            hidden = hidden + embeddings.position_embeddings
        for layer in self.tower.encoder.layer[: self.layers]:
            hidden = layer(hidden)
        if self.normed:
            hidden = self.tower.layernorm(hidden)
        return self._shuffled(hidden[:, 1:])

    def _shuffled(self, patches: Tensor) -> Tensor:
        """[F, H·W, C] → [F, H·W / m², C·m²], m × m patches side by side in a token, as in transformers."""
        frames, count, width = patches.shape
        side, m = int(count**0.5), self.merge
        grid = patches.reshape(frames, side // m, m, side // m, m, width)
        return grid.permute(0, 1, 3, 2, 4, 5).reshape(frames, (side // m) ** 2, m * m * width)


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    vision = config.vision_config
    if vision.model_type != _TOWER:
        raise UnsupportedModelError(
            f"vision tower '{vision.model_type}' is not supported; supported of InternVL is: {_TOWER}"
        )
    if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModelError(
            "InternVL's pixel shuffle needs a square grid of one layer: set vision_feature_select_strategy to 'default' "
            "and vision_feature_layer to one layer"
        )
    side, rest = divmod(image_side(vision) // patch_side(vision), _merge(config))
    if rest:
        raise UnsupportedModelError(
            f"a grid of patches cannot be shuffled by {_merge(config)}: it is not a multiple of it"
        )
    return {
        "image": Modality("vision", "features", side, side),
        "video": Modality("vision", "features", side, side, token="image"),
    }


def vision_stages(model: nn.Module) -> dict[str, VisionModule]:
    """Vision stages by name, see `Family.vision_stages`."""
    return {"vision": InternVisionStage(model)}


def _merge(config: Any) -> int:
    """m: how many patches along each side become one token."""
    return round(1 / config.downsample_ratio)
