"""Made checkpoints of Qwen3-VL: its tower's geometry and config."""

from typing import Any

from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

from .made_decoders import DECODERS, text_settings

PATCH, MERGE = 16, 2
# [hidden, layers, heads, FFN], side of the grid of learned positions, tapped layers; "real" is that of Qwen3-VL-2B.
TOWERS = {
    "tiny": ((32, 4, 2, 64), 6, [0, 2]),
    "real": ((1024, 24, 16, 4096), 48, [5, 11, 17]),
}
_TEXT_2B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 262144,
    "rope_theta": 5_000_000.0,
}
# Channels of a head's half that turn by time, row and column.
_SECTIONS = {"tiny": [4, 2, 2], "real": [24, 20, 20]}


def qwen3_vl_config(decoder: str, size: str, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    """The config, ids taken from the tokenizer."""
    (hidden, layers, heads, ffn), side, taps = TOWERS[size]
    text: dict[str, Any] = text_settings(decoder, size, tokenizer) | {"model_type": "qwen3_vl_text"}
    if size == "real":
        text |= _TEXT_2B
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": _SECTIONS[size],
        "mrope_interleaved": True,
    }
    vision = {
        "hidden_size": hidden,
        "depth": layers,
        "num_heads": heads,
        "intermediate_size": ffn,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": side**2,
        "deepstack_visual_indexes": taps,
    }
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids: dict[str, Any] = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(token) for kind, token in names.items()}
    ids |= {f"vision_{at}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{at}|>") for at in ("start", "end")}
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=DECODERS[decoder, size].tied, **ids
    )
