"""Many requests in one call of the language stage: each has a slot of one KV cache, written at its own position.

A prompt is prefilled into its slot alone (grouped-query attention takes a past and several new tokens only in a batch of
one); then all slots in use are decoded together. Rows are bit-equal to single runs in fp32 and INT8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array
from .session import check_cache_room

if TYPE_CHECKING:
    from .ort_kv_cache import OrtLanguage


class OrtBatch:
    """A `BatchDecoding` in ONNX Runtime on the CPU: the cache is bound in place, a slot is a slice of it."""

    rewinds = True

    def __init__(self, language: "OrtLanguage"):
        self._language = language
        self.slots = self.length = 0
        self._bound: dict[tuple[int, int], _Bound] = {}  # by first slot and number of slots
        self._cache = [self._zeros(0, 0) for _ in language.cache_names]  # [slots, KV heads, length, head width]

    def prefill(
        self,
        slot: int,
        embeds: Array,
        start: int,
        positions: np.ndarray | None = None,
        deepstack: np.ndarray | None = None,
    ) -> np.ndarray:
        return self._run(slot, np.asarray(embeds), [start], positions, deepstack)[0]

    def step(self, embeds: Array, starts: Sequence[int], positions: np.ndarray | None = None) -> np.ndarray:
        return self._run(0, np.asarray(embeds), starts, positions)

    def move(self, source: int, target: int, tokens: int) -> None:
        for cache in self._cache:
            cache[target, :, :tokens] = cache[source, :, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        for cache in self._cache:
            cache[[one, other], :, :tokens] = cache[[other, one], :, :tokens]

    def resize(self, slots: int, length: int, used: int) -> None:
        self._bound.clear()
        rows, kept = min(slots, self.slots), min(used, length, self.length)
        for at, cache in enumerate(self._cache):  # one after another: the old and the new cache are never both whole
            fresh = self._zeros(slots, length)
            fresh[:rows, :, :kept] = cache[:rows, :, :kept]
            self._cache[at] = fresh
        self.slots, self.length = slots, length

    def _zeros(self, slots: int, length: int) -> np.ndarray:
        decoder = self._language.decoder
        return np.zeros((slots, decoder.kv_heads, length, decoder.head_width), self._language.dtype)

    def _run(
        self,
        first: int,
        embeds: np.ndarray,
        starts: Sequence[int],
        positions: np.ndarray | None,
        deepstack: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits [B, V] of the last token of embeds [B, S, D], written to slots first … first + B − 1.

        They are good until the next call of as many slots.
        """
        furthest, batch = max(starts) + embeds.shape[1], len(starts)
        check_cache_room(self.length, furthest)
        bound = self._bound.get((first, batch))
        if bound is None:
            bound = self._bound[first, batch] = self._bind(first, batch)
        bound.binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, self._language.dtype))
        bound.binding.bind_cpu_input("write_index", np.asarray(starts, np.int64))
        for name, array in self._language.inputs.feed(starts, embeds.shape[1], positions, deepstack).items():
            bound.binding.bind_cpu_input(name, array)
        self._language.session.run_with_iobinding(bound.binding, None)
        return bound.logits[:, 0].astype(np.float32, copy=False)

    def _bind(self, first: int, batch: int) -> "_Bound":
        """Bind slots in place. It is kept until they are resized: with many layers binding takes as long as a small model."""
        language, kind = self._language, self._language.dtype.type
        binding = language.session.io_binding()
        for name, cache in zip(language.cache_names, self._cache, strict=True):
            rows = cache[first : first + batch]
            binding.bind_input(f"past.{name}", "cpu", 0, kind, list(rows.shape), rows.ctypes.data)
            binding.bind_output(f"present.{name}", "cpu", 0, kind, list(rows.shape), rows.ctypes.data)
        logits = np.empty((batch, 1, language.decoder.vocabulary), language.dtype)
        binding.bind_output("logits", "cpu", 0, kind, list(logits.shape), logits.ctypes.data)
        return _Bound(binding, logits)


@dataclass(frozen=True)
class _Bound:
    """A call's tensors in place, but for its inputs; `logits` [B, 1, V] are those of the last call."""

    binding: Any
    logits: np.ndarray
