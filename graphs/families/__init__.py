"""Model families: which modules of a Hugging Face model make the vision stage, and how its visual tokens are laid out.

Supporting another family takes one more module here, with the members of `Family`, and its name in `_MODULES`.
"""

from typing import Any, Protocol

from torch import nn

from ..ports import Stage
from . import (
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    smolvlm,
    video_llava,
)
from .base import Modality, UnsupportedModelError, VisionModule
from .decoders import DECODERS, check_decoder

__all__ = [
    "FAMILIES",
    "Family",
    "Modality",
    "StagedFamily",
    "TowerFamily",
    "UnsupportedModelError",
    "family_of",
]


class Family(Protocol):
    """The members of a family's module."""

    @property
    def MODEL_TYPE(self) -> str:
        """`model_type` of the family's config.json."""
        ...

    @property
    def NAME(self) -> str:
        """The family's name for messages and pages."""
        ...

    def modalities(self, config: Any) -> dict[str, Modality]:
        """How images and videos become visual tokens.

        Args:
            config: the checkpoint's config.

        Returns:
            `image` and, where the family has them, `video`: the stage that encodes it and the layout of its tokens.

        Raises:
            UnsupportedModelError: the tower, or the config's settings of it, do not fit the family.
        """
        ...


class TowerFamily(Family, Protocol):
    """A family with towers for pictures of one size, and `multi_modal_projector`."""

    def vision_stages(self, model: nn.Module) -> dict[str, VisionModule]:
        """The encoders of a transformers model.

        Args:
            model: the model, on any device.

        Returns:
            Modules by stage name, in the order of the stages.
        """
        ...


class StagedFamily(Family, Protocol):
    """A family whose vision and projection are of another kind."""

    @property
    def DECODERS(self) -> tuple[str, ...]:
        """`model_type` of the decoders that it takes."""
        ...

    def own_stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """The vision stages, in their order, and `project`."""
        ...


_MODULES: tuple[TowerFamily | StagedFamily, ...] = (
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    video_llava,
    internvl,
    qwen2_vl,
    qwen2_5_vl,
    qwen3_vl,
    smolvlm,
    idefics3,
)
FAMILIES = {family.MODEL_TYPE: family for family in _MODULES}


def family_of(config: Any) -> TowerFamily | StagedFamily:
    """The family of a checkpoint's config.

    Args:
        config: as transformers reads config.json.

    Returns:
        The family's module.

    Raises:
        UnsupportedModelError: the model type, its tower or its decoder is not supported, or it pools visual tokens
            after the projector.
    """
    model_type = getattr(config, "model_type", None)
    # Original (not Hugging Face) LLaVA checkpoints say in their config that they pool after the projector.
    if getattr(config, "mm_pooling_position", None) == "after" and getattr(config, "mm_spatial_pool_stride", 1) > 1:
        raise UnsupportedModelError(
            "this checkpoint pools visual tokens after the projector, where pruned tokens no longer form a grid; "
            "ReDiPrune needs the pool before the projector"
        )
    if model_type not in FAMILIES:
        supported = ", ".join(f"{name} ({family.NAME})" for name, family in FAMILIES.items())
        raise UnsupportedModelError(f"model_type '{model_type}' is not supported; supported are: {supported}")
    check_decoder(config.text_config, getattr(FAMILIES[model_type], "DECODERS", DECODERS))
    FAMILIES[model_type].modalities(config)  # raises where the tower is not one that the family takes
    return FAMILIES[model_type]
