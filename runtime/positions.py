"""Positions of a prompt's tokens, as the rotary embedding sees them, where they are not their places in the KV cache.

`visual_tokens.splice` decides them.
"""

from dataclasses import dataclass

import numpy as np

POSITIONS = ("compact", "original")


@dataclass(frozen=True)
class Positions:
    """Where tokens stand. What is generated goes on at the prompt's last position + 1, as in transformers' `generate`.

    Attributes:
        prompt: [A, S] int64; A is 1, or 3 (time, row, column) for multimodal rotary embeddings.
    """

    prompt: np.ndarray

    def span(self, start: int, count: int) -> np.ndarray:
        """Positions [A, count] of the tokens in slots start … start + count − 1, generated ones included."""
        slots = np.arange(start, start + count)
        last = self.prompt.shape[1] - 1
        return self.prompt[:, np.minimum(slots, last)] + np.maximum(slots - last, 0)

    @property
    def end(self) -> int:
        """The position behind the furthest of the prompt's."""
        return int(self.prompt.max(initial=-1)) + 1


def span_of(positions: Positions | None, start: int, count: int) -> np.ndarray:
    """As `Positions.span`; without positions tokens stand where they lie in the cache: [1, count]."""
    return np.arange(start, start + count)[None] if positions is None else positions.span(start, count)
