"""SmolVLM: images as tiles and a thumbnail, a placeholder each; m × m patches become one token by a pixel shuffle.

The shuffle belongs to the vision stage: what is selected, and projected, are its tokens. Videos are not taken; their
frames can be given as images.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..ports import Port, Stack, Stage
from .base import Modality, UnsupportedModelError, image_side, patch_side

MODEL_TYPE = "smolvlm"
NAME = "SmolVLM"
DECODERS = ("llama",)
TOWERS = ("smolvlm_vision", "idefics3_vision", "idefics3", "smolvlm")


class ShuffledVisionStage(nn.Module):
    """The tower over whole tiles, without padding, then the pixel shuffle.

    Args:
        model: a transformers model of SmolVLM or Idefics3.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.tower: Any = model.get_submodule("model.vision_model")
        connector: Any = model.get_submodule("model.connector")
        self.scale = connector.scale_factor
        self.stack = Stack("tower.encoder.layers", len(self.tower.encoder.layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [F, 3, H, W] → features [F, P, C·m²]."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [frames, patches, channels]
        hidden = patches + embeddings.position_embedding.weight  # of a whole tile each patch has its own, in order
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, None)
        return self._shuffled(self.tower.post_layernorm(hidden))

    def _shuffled(self, patches: Tensor) -> Tensor:
        """[F, H·W, C] → [F, H·W / m², C·m²], m × m patches side by side in a token, as transformers' connector does."""
        frames, count, width = patches.shape
        side, m = int(count**0.5), self.scale
        grid = patches.reshape(frames, side // m, m, side // m, m, width)
        return grid.permute(0, 1, 3, 2, 4, 5).reshape(frames, (side // m) ** 2, m * m * width)


def modalities(config: Any) -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    vision = config.vision_config
    if vision.model_type not in TOWERS:
        raise UnsupportedModelError(f"vision tower '{vision.model_type}' is not supported; supported is: {TOWERS[0]}")
    patches = image_side(vision) // patch_side(vision)
    side, rest = divmod(patches, config.scale_factor)
    if rest:
        raise UnsupportedModelError(
            f"a grid of {patches} × {patches} patches cannot be shuffled by {config.scale_factor}: it is no multiple of it"
        )
    if not _in_order(patches):
        raise UnsupportedModelError(
            f"learned positions of {patches} × {patches} patches are not looked up in their order"
        )
    return {"image": Modality("vision", "features", side, side)}


def own_stages(model: nn.Module) -> tuple[Stage, Stage]:
    """`vision` and `project`, see `Family.own_stages`."""
    config: Any = model.config
    (modality,) = modalities(config).values()
    side, depth = image_side(config.vision_config), config.text_config.hidden_size
    channels = config.vision_config.hidden_size * config.scale_factor**2
    vision = ShuffledVisionStage(model)
    return (
        Stage(
            "vision",
            vision,
            (Port("pixel_values", ("frames", 3, side, side)),),
            (Port("features", ("frames", modality.rows * modality.columns, channels)),),
            vision.stack,
        ),
        Stage(
            "project",
            model.get_submodule("model.connector.modality_projection"),
            (Port("kept", ("frames", "kept", channels)),),
            (Port("visual_embeds", ("frames", "kept", depth)),),
        ),
    )


def _in_order(patches: int) -> bool:
    """Whether transformers looks up learned positions along a side of so many patches in their order.

    It does so by fractions of a tile, in float32, which may fall on the wrong side of a boundary.
    """
    boundaries = torch.arange(1 / patches, 1.0, 1 / patches)
    fractions = torch.clamp(torch.arange(patches, dtype=torch.float32) * (1.0 / torch.tensor(patches)), max=1 - 1e-6)
    return torch.equal(torch.bucketize(fractions, boundaries, right=True), torch.arange(patches))
