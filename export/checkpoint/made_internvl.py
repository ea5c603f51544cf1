"""Made checkpoints of InternVL: its tower's geometry and config."""

from typing import Any

from transformers import InternVLConfig, PreTrainedTokenizerBase

from .made_decoders import DECODERS, text_settings

# [hidden, layers, heads, FFN], side of a tile in pixels.
TOWERS = {"tiny": ((32, 3, 2, 64), 112), "real": ((1024, 24, 16, 4096), 448)}
_PATCH = 14


def internvl_config(decoder: str, size: str, tokenizer: PreTrainedTokenizerBase) -> InternVLConfig:
    """The config of InternVL3 (at "real" size of its 1B), ids taken from the tokenizer."""
    (hidden, layers, heads, ffn), side = TOWERS["tiny" if size == "tiny" else "real"]
    token: Any = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    vision: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "attention_bias": True,
        "image_size": [side, side],
        "patch_size": [_PATCH, _PATCH],
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=text_settings(decoder, size, tokenizer),
        image_token_id=token,
        image_seq_length=(side // _PATCH // 2) ** 2,
        tie_word_embeddings=DECODERS[decoder, size].tied,
    )
