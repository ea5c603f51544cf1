"""Bilinear interpolation of a grid of tokens, as PyTorch's `interpolate` does it: each new token is a mix of up to four."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mix:
    """New tokens as mixes of old ones.

    Attributes:
        sources: [M, 4] int64, the old tokens that each is made of.
        weights: [M, 4] float32, how much of each.
    """

    sources: np.ndarray
    weights: np.ndarray

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """[R, D] → [M, D]"""
        mixed = np.zeros((len(self.sources), tokens.shape[1]), np.float32)
        for sources, weights in zip(self.sources.T, self.weights.T, strict=True):
            mixed += tokens[sources] * weights[:, None]
        return mixed.astype(tokens.dtype)


def interpolated(old: tuple[int, int], new: tuple[int, int]) -> Mix:
    """Tokens of a grid of new rows × columns as mixes of those of a grid of old rows × columns, row by row."""
    (above, below, down), (left, right, across) = (_along(*sizes) for sizes in zip(old, new, strict=True))
    columns = old[1]
    sources = [row[:, None] * columns + column for row in (above, below) for column in (left, right)]
    weights = [row[:, None] * column for row in (1 - down, down) for column in (1 - across, across)]
    return Mix(
        np.stack([source.ravel() for source in sources], axis=1),
        np.stack([weight.ravel() for weight in weights], axis=1).astype(np.float32),
    )


def _along(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two old places that each of the new ones lies between, and how far it is from the first to the second."""
    at = np.maximum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5), 0)
    first = np.minimum(at.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), at - first
