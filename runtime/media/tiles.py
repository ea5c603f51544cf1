"""Order of the visual tokens of a picture that is seen as a whole and in tiles (LLaVA-NeXT, LLaVA-OneVision)."""

import math
from dataclasses import dataclass

import numpy as np

from .bilinear import Mix, interpolated

NEWLINE = -1
_LARGEST_RATIO = 1.1  # of sides, above which a picture is scaled down


@dataclass(frozen=True)
class Layout:
    """The sequence of tokens that replaces a placeholder.

    Attributes:
        slots: [N] int64: `tile · P + patch index`, P being the patches of a tile and tile 0 the base; `NEWLINE` (−1)
            for the newline embedding; with `mix`, from tiles · P on, its tokens.
        mix: tokens that projected ones are mixed to, where a large picture is scaled down behind the projector.
    """

    slots: np.ndarray
    mix: Mix | None = None


def anyres_layout(
    image_size: tuple[int, int], pinpoints: list[list[int]], tile_size: int, patch: int, most: int | None = None
) -> Layout:
    """Which token stands in each slot of the sequence that replaces the image's placeholder.

    The base tile, the whole picture squeezed to a square, comes first. The tiles follow as one large grid,
    without the rows or columns that are mere padding, row by row, a newline embedding after each row. Order
    and rounding are those of transformers' `LlavaNextVideoModel.pack_image_features`.

    Args:
        image_size: (height, width) of the picture in pixels.
        pinpoints: the (height, width) in pixels that a picture is fitted into, multiples of `tile_size`.
        tile_size: side of a tile in pixels.
        patch: side of a patch in pixels.
        most: a grid with more than about as many tiles' tokens is scaled down to that many; None: never.
    """
    from transformers.image_processing_utils import select_best_resolution

    side = tile_size // patch
    height, width = select_best_resolution(image_size, pinpoints)
    rows, columns = height // tile_size, width // tile_size
    tokens = np.arange(rows * columns * side * side, dtype=np.int64) + side * side  # behind the base tile
    grid = tokens.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    grid = _unpad(grid, *image_size)
    mix = None
    ratio = 0.0 if most is None else math.sqrt(grid.size / (most * side**2))
    if ratio > _LARGEST_RATIO:
        size = int(grid.shape[0] // ratio), int(grid.shape[1] // ratio)
        of_grid = interpolated((grid.shape[0], grid.shape[1]), size)
        mix = Mix(grid.ravel()[of_grid.sources], of_grid.weights)
        grid = np.arange(size[0] * size[1], dtype=np.int64).reshape(size) + side * side * (rows * columns + 1)
    lines = np.pad(grid, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return Layout(np.concatenate([np.arange(side * side, dtype=np.int64), lines.ravel()]), mix)


def ended_layout(tokens: int) -> Layout:
    """All of so many tokens in their order, and a newline embedding behind them."""
    return Layout(np.append(np.arange(tokens, dtype=np.int64), NEWLINE))


def _unpad(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """The grid [rows, columns] without the padding that fitting a height × width picture into it left."""
    rows, columns = grid.shape
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[padding : rows - padding]
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, padding : columns - padding]
