"""Tokens that are selected as cells, each a mix of patches: the patches of the kept ones are projected, and mixed behind it.

LLaVA-OneVision scales a video's projected tokens down. The projector works on each token by itself, so that the mixes of
the projected patches of some cells are those cells of the whole.
"""

from dataclasses import dataclass

import numpy as np

from .media.bilinear import interpolated


@dataclass(frozen=True)
class KeptCells:
    """The kept cells of F frames.

    Attributes:
        patches: [F, R] int64, the patches that they are mixed of; where a frame has fewer, its last is repeated.
        places: [F, K, 4], where in `patches` each cell has its own.
        weights: [F, K, 4] float32, how much of each.
    """

    patches: np.ndarray
    places: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, kept: np.ndarray, cells: tuple[int, int], patches: int) -> "KeptCells":
        """Given indices [F, K] of cells in a grid of rows × columns, that a square grid of patches is scaled down to."""
        side = round(patches**0.5)
        mix = interpolated((side, side), cells)
        found = [np.unique(mix.sources[row], return_inverse=True) for row in kept]
        most = max(len(own) for own, _ in found)
        return cls(
            np.stack([np.pad(own, (0, most - len(own)), mode="edge") for own, _ in found]),
            np.stack([places.reshape(-1, 4) for _, places in found]),
            mix.weights[kept],
        )

    def gathered(self, features: np.ndarray) -> np.ndarray:
        """[F, P, C] → [F, R, C], what is projected."""
        return np.take_along_axis(features, self.patches[:, :, None], axis=1)

    def mixed(self, projected: np.ndarray) -> np.ndarray:
        """[F, R, D] → [F, K, D]."""
        frames = np.arange(len(projected))[:, None, None]
        mixed = projected[frames, self.places].astype(np.float32) * self.weights[..., None]  # [F, K, 4, D]
        return mixed.sum(2).astype(projected.dtype)
