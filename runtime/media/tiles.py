"""Order of the visual tokens of a LLaVA-NeXT picture, which is seen as a whole and in tiles."""

import numpy as np

NEWLINE = -1


def anyres_layout(image_size: tuple[int, int], pinpoints: list[list[int]], tile_size: int, patch: int) -> np.ndarray:
    """Which token stands in each slot of the sequence that replaces the image's placeholder.

    The base tile, the whole picture squeezed to a square, comes first. The tiles follow as one large grid,
    without the rows or columns that are mere padding, row by row, a newline embedding after each row. Order
    and rounding are those of transformers' `LlavaNextVideoModel.pack_image_features`.

    Args:
        image_size: (height, width) of the picture in pixels.
        pinpoints: the (height, width) in pixels that a picture is fitted into, multiples of `tile_size`.
        tile_size: side of a tile in pixels.
        patch: side of a patch in pixels.

    Returns:
        [N] int64: `tile · P + patch index`, P being the patches of a tile and tile 0 the base; `NEWLINE` (−1)
        for the newline embedding.
    """
    from transformers.image_processing_utils import select_best_resolution

    side = tile_size // patch
    height, width = select_best_resolution(image_size, pinpoints)
    rows, columns = height // tile_size, width // tile_size
    tokens = np.arange(rows * columns * side * side, dtype=np.int64) + side * side  # behind the base tile
    grid = tokens.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    grid = _unpad(grid, *image_size)
    lines = np.pad(grid, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return np.concatenate([np.arange(side * side, dtype=np.int64), lines.ravel()])


def _unpad(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """The grid [rows, columns] without the padding that fitting a height × width picture into it left."""
    rows, columns = grid.shape
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[padding : rows - padding]
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, padding : columns - padding]
