"""The decoder as a stage: embeddings in, logits and KV cache out, the cache updated in place.

The cache is one tensor [B, KV heads, T, head width] per layer and kind. New keys and values are written at
`write_index`; a boolean mask lets slot s attend to 0 … s. The positions that the rotary embedding sees are an input of
their own: tokens that were kept may stand where they stood among all of them. Where one buffer is bound to a cache's input and output,
the ONNX operator that writes (TensorScatter, opset 24) copies nothing, in ONNX Runtime and as KV_CACHE_UPDATE in
TensorRT. T is as long as the request needs in ONNX Runtime, and fixed when a TensorRT engine is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from .multi_axis_rotary import MultiAxisRotary, added_after_layers, axes_of, rotary_of

ATTENTION = "rediprune"


@torch.library.custom_op("rediprune::write_cache", mutates_args=())
def write_cache(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """A copy of a cache with new entries written into it; in ONNX the operator TensorScatter.

    Args:
        cache: [B, H, T, W].
        update: [B, H, S, W].
        write_index: [B] int64; row b is written at slots write_index[b] … write_index[b] + S − 1.

    Returns:
        [B, H, T, W].
    """
    out = cache.clone()
    for row, start in enumerate(write_index.tolist()):
        out[row, :, start : start + update.shape[2]] = update[row]
    return out


@write_cache.register_fake
def _(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    return torch.empty_like(cache)


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention without repeating the key and value heads, so that the ONNX graph has native grouped-query attention.

    An attention function of transformers (`AttentionInterface`).

    Args:
        module: the attention layer; unused.
        query: [B, heads, S, W].
        key, value: [B, KV heads, T, W].
        attention_mask: [B, 1, S, T] bool, True where a position is attended to.
        kwargs: of these only `scaling`, the factor of the scores.

    Returns:
        [B, S, heads, W], and None for the attention weights.
    """
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"), enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)


class _TensorCache:
    """The part of transformers' `Cache` that a decoder calls, over the stage's own tensors."""

    is_compileable = False

    def __init__(self, tensors: tuple[Tensor, ...], write_index: Tensor):
        self.tensors = list(tensors)
        self.write_index = write_index

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        for slot, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self.tensors[slot] = torch.ops.rediprune.write_cache(self.tensors[slot], new, self.write_index)
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]

    def get_seq_length(self, *args: Any) -> int:
        return 0


class LanguageStage(nn.Module):
    """The decoder and its head over a KV cache of plain tensors.

    Args:
        model: a transformers model with a decoder (`decoder_of`) and `lm_head`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.decoder: Any = decoder_of(model)
        self.head: Any = model.get_submodule("lm_head")
        self.axes = axes_of(self.decoder)
        config: Any = model.config
        self.taps = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        interleaved = config.model_type.startswith("qwen3")
        self.rotary = MultiAxisRotary(self.decoder.rotary_emb, interleaved) if self.axes > 1 else None

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, write_index: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """One step over S tokens, of the prompt or of the answer.

        Args:
            inputs_embeds: [B, S, D].
            position_ids: [B, S] int64, what the rotary embedding takes for each token's position; [3, B, S] where
                it is multimodal.
            write_index: [B] int64, the slot of each row's first token.
            others: `deepstack` [T, B, S, D], added to what the first T layers give, where the model taps T layers of its
                tower; then the cache: 2 · layers tensors [B, KV heads, T, W] in the order of `cache_names`; entries at and after
                write_index + S are never read.

        Returns:
            Logits [B, 1, V] of the last position, then the updated cache.
        """
        deepstack, cache = (others[0], others[1:]) if self.taps else (None, others)
        steps = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        own = write_index[:, None] + steps[None]  # [batch, tokens]
        slots = torch.arange(cache[0].shape[2], device=inputs_embeds.device)
        mask = slots[None, None, None, :] <= own[:, None, :, None]  # [batch, 1, tokens, cache length]
        updated = _TensorCache(cache, write_index)
        with (
            attention_of(self.decoder, ATTENTION),
            rotary_of(self.decoder, self.rotary),
            added_after_layers(self.decoder, deepstack),
        ):
            hidden = self.decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=updated,
                use_cache=True,
            ).last_hidden_state
        return (self.head(hidden[:, -1:]), *updated.tensors)


def decoder_of(model: nn.Module) -> Any:
    """The decoder of a transformers model, which its families name in two ways."""
    inner = model.get_submodule("model")
    return inner.get_submodule("language_model" if hasattr(inner, "language_model") else "text_model")


@contextmanager
def attention_of(decoder: Any, name: str) -> Iterator[None]:
    """Run a decoder with another attention implementation within the block, then restore its own.

    Args:
        decoder: a transformers model.
        name: of an implementation registered with `AttentionInterface`.
    """
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = name
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


def cache_names(layers: int) -> list[str]:
    """Names of the cache tensors in the stage's order: `key.0, value.0, key.1, …`.

    Inputs are called `past.<name>`, outputs `present.<name>`.
    """
    return [f"{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]


def cache_shape(text_config: Any, batch: int, length: int) -> tuple[int, int, int, int]:
    """Shape of one cache tensor.

    Args:
        text_config: the decoder's config.
        batch: B.
        length: T, positions in the cache.

    Returns:
        (B, KV heads, T, head width).
    """
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return batch, text_config.num_key_value_heads, length, width
