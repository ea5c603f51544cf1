"""Made checkpoints of Qwen-VL: the towers' geometry, and the configs."""

from typing import Any

from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from .made_decoders import DECODERS, text_settings

_MERGE = 2
# The tower's settings by family and size. "real" are those of Qwen3-VL-2B, Qwen2.5-VL-3B and Qwen2-VL-2B.
_TOWERS: dict[tuple[str, str], dict[str, Any]] = {
    ("qwen3_vl", "tiny"): {
        **{"hidden_size": 32, "depth": 4, "num_heads": 2, "intermediate_size": 64, "patch_size": 16},
        **{"num_position_embeddings": 6**2, "deepstack_visual_indexes": [0, 2]},
    },
    ("qwen3_vl", "real"): {
        **{"hidden_size": 1024, "depth": 24, "num_heads": 16, "intermediate_size": 4096, "patch_size": 16},
        **{"num_position_embeddings": 48**2, "deepstack_visual_indexes": [5, 11, 17]},
    },
    ("qwen2_5_vl", "tiny"): {
        **{"hidden_size": 32, "depth": 4, "num_heads": 2, "intermediate_size": 64, "patch_size": 14},
        **{"window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2},
    },
    ("qwen2_5_vl", "real"): {
        **{"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420, "patch_size": 14},
        **{"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2},
    },
    ("qwen2_vl", "tiny"): {"embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
    ("qwen2_vl", "real"): {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14},
}
# The decoder's settings, where they are not those of `DECODERS`.
_TEXTS: dict[tuple[str, str], dict[str, Any]] = {
    # Heads of 16 channels, which ONNX Runtime's own attention takes.
    **{(family, "tiny"): {"num_attention_heads": 3, "num_key_value_heads": 1} for family in ("qwen2_5_vl", "qwen2_vl")},
    ("qwen3_vl", "real"): {
        **{"hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 262144},
        "rope_theta": 5_000_000.0,
    },
    ("qwen2_5_vl", "real"): {
        **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
        **{"num_key_value_heads": 2, "max_position_embeddings": 128000},
    },
    ("qwen2_vl", "real"): {
        **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
        **{"num_key_value_heads": 2, "max_position_embeddings": 32768},
    },
}
# Channels of a head's half that turn by time, row and column.
_SECTIONS = {
    ("qwen3_vl", "tiny"): [4, 2, 2],
    ("qwen3_vl", "real"): [24, 20, 20],
    **{key: [4, 2, 2] for key in (("qwen2_5_vl", "tiny"), ("qwen2_vl", "tiny"))},
    **{key: [16, 24, 24] for key in (("qwen2_5_vl", "real"), ("qwen2_vl", "real"))},
}
_CONFIGS = {"qwen3_vl": Qwen3VLConfig, "qwen2_5_vl": Qwen2_5_VLConfig, "qwen2_vl": Qwen2VLConfig}
FAMILIES = tuple(_CONFIGS)


def qwen_config(family: str, decoder: str, size: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config of a family, ids taken from the tokenizer."""
    text: dict[str, Any] = text_settings(decoder, size, tokenizer) | {"model_type": f"{family}_text"}
    text |= _TEXTS.get((family, size), {})
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": _SECTIONS[family, size],
    }
    if family == "qwen3_vl":
        text["rope_parameters"]["mrope_interleaved"] = True
    out = "hidden_size" if family == "qwen2_vl" else "out_hidden_size"
    vision = _TOWERS[family, size] | {"spatial_merge_size": _MERGE, out: text["hidden_size"]}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids: dict[str, Any] = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(token) for kind, token in names.items()}
    ids |= {f"vision_{at}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{at}|>") for at in ("start", "end")}
    return _CONFIGS[family](
        text_config=text, vision_config=vision, tie_word_embeddings=DECODERS[decoder, size].tied, **ids
    )
