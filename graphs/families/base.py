"""What the families share: the vision stage, and the checks of the vision tower."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ports import Stack

TOWERS = ("clip_vision_model", "siglip_vision_model")


class UnsupportedModelError(ValueError):
    """The checkpoint, its tower or its decoder is not supported; the message says what is."""


@dataclass(frozen=True)
class Modality:
    """How an image or a video becomes visual tokens.

    Attributes:
        stage: name of the vision stage that encodes it.
        output: name of that stage's output with the features [F, P, C].
        rows, columns: size of the patch grid of one frame; P = leading + rows · columns.
        leading: number of tokens before the grid: 1 where the class token is kept.
        tiled: whether an image is cut into tiles (anyres), which the decoder sees as one grid with newline tokens.
        dynamic: whether each picture has the grid that fits it; rows and columns are then those of a usual one.
        rows_output: the output of the stage from which `project` takes the kept tokens by their indices; None where it takes
            the tokens themselves.
        mixed_output: the output with the patches that its tokens are mixed of behind the projector, by bilinear
            interpolation; None where tokens are projected as they are.
        token: the kind whose placeholder stands for it in an encoded prompt, where it is not its own.
    """

    stage: str
    output: str
    rows: int
    columns: int
    leading: int = 0
    tiled: bool = False
    token: str | None = None
    dynamic: bool = False
    rows_output: str | None = None
    mixed_output: str | None = None


class VisionModule(nn.Module):
    """A vision stage: normalised pixels [F, 3, H, W] → features [F, P, C], as they are before the projector.

    Attributes:
        channels: C.
        stack: its layers, where all are alike and features are taken from the last of them that is run.
        pool: of the features of video frames, a second output [F, P', C]; None where the family has no pool.
    """

    channels: int
    stack: Stack | None
    pool: nn.Module | None


class VisionStage(VisionModule):
    """The vision tower up to the chosen hidden layers, without the class token, then the pool.

    Layers above the highest chosen one are never run. With a pool there are two outputs, so that one engine serves
    images and videos.

    Args:
        tower: a CLIP or SigLIP vision model of transformers.
        layer: the config's vision_feature_layer; the features of several layers are concatenated.
        drop_class: whether the first token, the class token, is dropped.
        pool: of the features of video frames; None where the family has no pool.
    """

    def __init__(self, tower: nn.Module, layer: int | list[int], drop_class: bool, pool: nn.Module | None = None):
        super().__init__()
        self.tower: Any = tower
        self.pool = pool
        self.drop_class = drop_class
        self.chosen = hidden_indices(tower, layer)
        self.channels = self.tower.config.hidden_size * len(self.chosen)
        self.stack = Stack("tower.encoder.layers", self.chosen[0]) if len(self.chosen) == 1 else None

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised pixels [F, 3, H, W] → features [F, P, C], and with a pool also pooled features [F, P', C]."""
        hidden = self.tower.embeddings(pixel_values)  # [frames, tokens, channels]
        if hasattr(self.tower, "pre_layrnorm"):  # CLIP; SigLIP has none
            hidden = self.tower.pre_layrnorm(hidden)
        states = [hidden]
        for layer in self.tower.encoder.layers[: max(self.chosen)]:
            states.append(layer(states[-1], None))
        features = torch.cat([states[index] for index in self.chosen], dim=-1)  # [frames, patches, channels]
        if self.drop_class:
            features = features[:, 1:]
        return features if self.pool is None else (features, self.pool(features))


def hidden_indices(tower: Any, layer: int | list[int]) -> list[int]:
    """Indices of the hidden states that a config's vision_feature_layer names.

    Args:
        tower: the vision tower, for its number of layers.
        layer: one index or several; negative ones count from the last layer.

    Returns:
        Non-negative indices; 0 is the embedding, n the output of layer n.
    """
    count = len(tower.encoder.layers) + 1
    return [index % count for index in ([layer] if isinstance(layer, int) else layer)]


def image_side(vision_config: Any) -> int:
    """Side of the tower's square image in pixels.

    Raises:
        UnsupportedModelError: the image is not square.
    """
    size: Any = vision_config.image_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise UnsupportedModelError(
            f"the vision tower takes images of {sorted(sides)} pixels; only square ones are supported"
        )
    return sides.pop()


def patch_side(vision_config: Any) -> int:
    """Side of a patch in pixels."""
    size = vision_config.patch_size
    return size if isinstance(size, int) else size[0]


def square_grid(config: Any) -> tuple[int, int]:
    """Side of the patch grid of a CLIP or SigLIP tower, and how many tokens stand before it (a class token that is kept).

    Raises:
        UnsupportedModelError: another tower, or one without the class token that the config would drop.
    """
    check_tower(config.vision_config)
    kept = not drops_class_token(config) and has_class_token(config.vision_config)
    return image_side(config.vision_config) // config.vision_config.patch_size, int(kept)


def has_class_token(vision_config: Any) -> bool:
    """Whether the tower puts a class token before the patches: CLIP does, SigLIP does not."""
    return vision_config.model_type == "clip_vision_model"


def check_tower(vision_config: Any) -> None:
    """Refuse a vision tower that `VisionStage` does not know.

    Raises:
        UnsupportedModelError: the tower is not one of `TOWERS`.
    """
    if vision_config.model_type not in TOWERS:
        raise UnsupportedModelError(
            f"vision tower '{vision_config.model_type}' is not supported; supported are: {', '.join(TOWERS)}"
        )


def drops_class_token(config: Any) -> bool:
    """Whether the config's vision_feature_select_strategy drops the class token.

    Raises:
        UnsupportedModelError: it does, and the tower has none.
    """
    drop = config.vision_feature_select_strategy == "default"
    if drop and not has_class_token(config.vision_config):
        raise UnsupportedModelError(
            "vision_feature_select_strategy 'default' drops a class token, but the tower has none; "
            "set it to 'full' in config.json"
        )
    return drop
