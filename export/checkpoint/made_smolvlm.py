"""Made checkpoints of SmolVLM and Idefics3: their tower's geometry and config."""

from typing import Any

from transformers import Idefics3Config, PreTrainedConfig, PreTrainedTokenizerBase, SmolVLMConfig

from .made_decoders import DECODERS, text_settings

# [hidden, layers, heads, FFN], side of a tile and of a patch in pixels, patches along a token's side; "real" is that of
# SmolVLM2-2.2B.
_TOWERS = {
    "tiny": ((32, 3, 2, 64), 112, 14, 2),
    "real": ((1152, 27, 16, 4304), 384, 14, 3),
}
_CONFIGS = {"smolvlm": SmolVLMConfig, "idefics3": Idefics3Config}
FAMILIES = tuple(_CONFIGS)


def smolvlm_config(family: str, decoder: str, size: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config of a family, ids taken from the tokenizer."""
    (hidden, layers, heads, ffn), side, patch, scale = _TOWERS["tiny" if size == "tiny" else "real"]
    token: Any = tokenizer.convert_tokens_to_ids("<image>")
    vision: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "image_size": side,
        "patch_size": patch,
    }
    return _CONFIGS[family](
        vision_config=vision,
        text_config=text_settings(decoder, size, tokenizer),
        image_token_id=token,
        scale_factor=scale,
        tie_word_embeddings=DECODERS[decoder, size].tied,
    )
