"""Model families: which modules of a Hugging Face model are the stages, and what the visual tokens look like.

Supporting another family means one more file here and its line in `FAMILIES`.
"""

from typing import Any, Protocol

from torch import nn

from . import llava, llava_next_video, video_llava
from .base import Modality, UnsupportedModelError, check_decoder, check_strategy, check_tower

__all__ = ["FAMILIES", "Family", "Modality", "UnsupportedModelError", "family_of"]


class Family(Protocol):
    """What a family's module offers."""

    @property
    def MODEL_TYPE(self) -> str: ...

    @property
    def NAME(self) -> str: ...

    def modalities(self, config: Any) -> dict[str, Modality]:
        """`image` and, where the family has them, `video`: the stage that encodes it and the layout of its tokens."""
        ...

    def vision_stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """Encoders by stage name; each takes pixel_values [F,3,H,W]."""
        ...


_MODULES: tuple[Family, ...] = (llava, llava_next_video, video_llava)
FAMILIES = {family.MODEL_TYPE: family for family in _MODULES}


def family_of(config: Any) -> Family:
    """The family of a checkpoint's config.

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
        hint = ""
        if str(model_type).startswith("llava_onevision"):
            hint = " (it pools video tokens after the projector, where pruned tokens no longer form a grid)"
        raise UnsupportedModelError(f"model_type '{model_type}' is not supported{hint}; supported are: {supported}")
    check_tower(config.vision_config)
    check_strategy(config)
    check_decoder(config.text_config)
    return FAMILIES[model_type]
