"""What the families share: the vision stage and the checks of tower and decoder."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOWERS = ("clip_vision_model", "siglip_vision_model")
DECODERS = ("llama", "qwen2")


class UnsupportedModelError(ValueError):
    """The checkpoint is not one of the supported families; the message lists them."""


@dataclass(frozen=True)
class Modality:
    """How an image or a video becomes visual tokens.

    Attributes:
        stage: the vision stage that encodes it.
        output: that stage's output holding the features [F, P, C].
        rows, columns: the grid of patches of one frame; P = leading + rows · columns.
        leading: tokens before the grid (a kept class token).
        tiled: an image is cut into tiles (anyres), which the decoder sees as one grid with newline tokens.
    """

    stage: str
    output: str
    rows: int
    columns: int
    leading: int = 0
    tiled: bool = False


class VisionStage(nn.Module):
    """pixel_values [F,3,H,W] → features [F,P,C]: the chosen hidden layer(s) without the class token, then the pool.

    Layers above the highest chosen one are never run. With a pool there are two outputs, features and
    pooled_features [F,P',C], so that one engine serves images and videos.
    """

    def __init__(self, tower: nn.Module, layer: int | list[int], drop_class: bool, pool: nn.Module | None = None):
        super().__init__()
        self.tower: Any = tower
        self.pool = pool
        self.drop_class = drop_class
        self.chosen = hidden_indices(tower, layer)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.tower.embeddings(pixel_values)
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
    """Non-negative indices into the tower's hidden states (0 is the embedding) of a config's vision_feature_layer."""
    count = len(tower.encoder.layers) + 1
    return [index % count for index in ([layer] if isinstance(layer, int) else layer)]


def grid_side(vision_config: Any) -> int:
    return vision_config.image_size // vision_config.patch_size


def has_class_token(vision_config: Any) -> bool:
    return vision_config.model_type == "clip_vision_model"


def check_tower(vision_config: Any) -> None:
    if vision_config.model_type not in TOWERS:
        raise UnsupportedModelError(
            f"vision tower '{vision_config.model_type}' is not supported; supported are: {', '.join(TOWERS)}"
        )


def check_strategy(config: Any) -> bool:
    """Whether the class token is dropped; refuses a strategy the tower cannot follow."""
    drop = config.vision_feature_select_strategy == "default"
    if drop and not has_class_token(config.vision_config):
        raise UnsupportedModelError(
            "vision_feature_select_strategy 'default' drops a class token, but the tower has none; "
            "set it to 'full' in config.json"
        )
    return drop


def check_decoder(text_config: Any) -> None:
    if text_config.model_type not in DECODERS:
        raise UnsupportedModelError(
            f"language model '{text_config.model_type}' is not supported; supported are: {', '.join(DECODERS)}"
        )
    if getattr(text_config, "use_sliding_window", False):
        raise UnsupportedModelError("a language model with sliding-window attention is not supported")
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise UnsupportedModelError(
            f"rotary scaling '{rope['rope_type']}' changes with the prompt's length and cannot be traced"
        )
