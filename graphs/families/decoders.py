"""Which decoders can be traced with a KV cache of any length; a further one is one entry."""

from collections.abc import Collection
from typing import Any

from .base import UnsupportedModelError

DECODERS = ("llama", "mistral", "qwen2", "qwen3")


def check_decoder(text_config: Any, known: Collection[str] = DECODERS) -> None:
    """Refuse a decoder that cannot be traced with a KV cache of any length.

    Raises:
        UnsupportedModelError: the decoder is not one of those known, has sliding-window attention, or rotary embeddings
            that change with the prompt's length.
    """
    if text_config.model_type not in known:
        raise UnsupportedModelError(
            f"language model '{text_config.model_type}' is not supported; supported are: {', '.join(known)}"
        )
    flagged = ["sliding_attention"] if getattr(text_config, "use_sliding_window", _mistral_window(text_config)) else []
    kinds: list[str] = (
        getattr(text_config, "layer_types", None) or flagged
    )  # transformers goes by these where it has them
    windowed = [kind for kind in kinds if kind != "full_attention"]
    if windowed:
        raise UnsupportedModelError(
            f"a language model with sliding-window attention is not supported: {len(windowed)} of its {len(kinds)} layers "
            f"are '{windowed[0]}'"
        )
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise UnsupportedModelError(
            f"rotary scaling '{rope['rope_type']}' changes with the prompt's length and cannot be traced"
        )


def _mistral_window(text_config: Any) -> bool:
    """Whether a Mistral, which has no switch for it, attends to fewer positions than it has."""
    window = getattr(text_config, "sliding_window", None) if text_config.model_type == "mistral" else None
    return window is not None and window < text_config.max_position_embeddings
