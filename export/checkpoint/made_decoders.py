"""Decoders of made checkpoints: the geometry of real ones, and tiny ones for tests."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .made_tokenizer import sentencepiece


@dataclass(frozen=True)
class Geometry:
    """Sizes of a decoder.

    Attributes:
        width, layers, heads, kv_heads, ffn: of its layers.
        words: of the plain vocabulary.
        rows: of the embedding table.
        context: positions at most.
        tied: whether the head's weights are the embedding table.
        head_width: of a head where it is not width / heads.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    words: int
    rows: int
    context: int
    tied: bool
    head_width: int | None = None


DECODERS = {
    ("llama", "tiny"): Geometry(64, 2, 4, 2, 128, 1000, 1024, 2048, False),
    ("llama", "real"): Geometry(2048, 22, 32, 4, 5632, 32000, 32064, 4096, False),
    ("llama", "7b"): Geometry(4096, 32, 32, 32, 11008, 32000, 32064, 4096, False),
    ("mistral", "tiny"): Geometry(64, 2, 4, 2, 128, 1000, 1024, 2048, False),
    ("mistral", "7b"): Geometry(4096, 32, 32, 8, 14336, 32000, 32064, 32768, False),
    ("qwen2", "tiny"): Geometry(48, 2, 6, 2, 96, 1000, 1024, 2048, True),
    ("qwen2", "real"): Geometry(896, 24, 14, 2, 4864, 151643, 151936, 32768, True),
    ("qwen2", "7b"): Geometry(3584, 28, 28, 4, 18944, 151643, 152064, 32768, False),
    ("qwen3", "tiny"): Geometry(48, 2, 4, 2, 96, 1000, 1024, 2048, True, head_width=16),
    ("qwen3", "real"): Geometry(1024, 28, 16, 8, 3072, 151643, 151936, 40960, True, head_width=128),
}


def text_settings(decoder: str, size: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The `text_config` of a made checkpoint.

    Args:
        decoder, size: of `DECODERS`.
        tokenizer: its special tokens give the ids.
    """
    geometry, llama = DECODERS[decoder, size], sentencepiece(decoder)
    settings: dict[str, Any] = {
        "model_type": decoder,
        "hidden_size": geometry.width,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "intermediate_size": geometry.ffn,
        "vocab_size": geometry.rows,
        "max_position_embeddings": geometry.context,
        "tie_word_embeddings": geometry.tied,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<s>" if llama else "<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings |= {"rms_norm_eps": 1e-5} if llama else {"rope_theta": 1_000_000.0}
    if decoder == "mistral":
        settings |= {"sliding_window": None, "rope_theta": 1_000_000.0}
    if geometry.head_width is not None:
        settings["head_dim"] = geometry.head_width
    return settings
