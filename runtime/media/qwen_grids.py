"""What a tower of Qwen-VL needs to know of a grid of patches, besides pixels: as transformers' `vision_utils` computes it."""

import numpy as np


def block_order(height: int, width: int, m: int) -> list[np.ndarray]:
    """Row and column of each of height × width patches, [patches] each, in the order of groups of m × m."""
    grids = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    shape = (height // m, m, width // m, m)
    return [grid.reshape(shape).swapaxes(1, 2).ravel() for grid in grids]


def interpolation(height: int, width: int, m: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where patches are in a learned grid of side × side: indices [patches, 4] int64 and weights [patches, 4] float32."""

    def along(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        floor = np.floor(source)
        steps = np.arange(2)
        taps = np.clip(floor.astype(np.int64)[:, None] + steps, 0, side - 1)
        distance = np.abs(source[:, None] - floor[:, None] - steps.astype(np.float32))
        return taps, np.clip(1 - distance, 0, None)

    rows, columns = block_order(height, width, m)
    (at_row, by_row), (at_column, by_column) = along(rows, height), along(columns, width)
    indices = (at_row[:, :, None] * side + at_column[:, None, :]).reshape(-1, 4)
    return indices, (by_row[:, :, None] * by_column[:, None, :]).reshape(-1, 4).astype(np.float32)


def windows(height: int, width: int, m: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of side × side groups over height × width patches, all filled up to one size S = side² · m².

    Returns:
        rows [N, S] int64, the patches in each window, its own before what fills it up; lengths [N] int64, how many are
        its own; slots [patches] int64, where each patch is in `rows`, flat.
    """
    high, wide = height // m, width // m
    down, across = -(-high // side), -(-wide // side)
    grid = np.full((down * side, across * side), -1)
    grid[:high, :wide] = np.arange(high * wide).reshape(high, wide)
    groups = grid.reshape(down, side, across, side).swapaxes(1, 2).reshape(down * across, side * side)
    order = np.argsort(groups < 0, axis=1, kind="stable")  # a window's own first, in their order
    groups = np.take_along_axis(groups, order, axis=1)
    lengths = (groups >= 0).sum(1) * m * m
    groups = np.where(groups >= 0, groups, groups[:, :1])
    rows = (groups[:, :, None] * m * m + np.arange(m * m)).reshape(len(groups), -1)
    own = np.arange(rows.shape[1]) < lengths[:, None]
    slots = np.empty(height * width, np.int64)
    slots[rows[own]] = np.flatnonzero(own)
    return rows, lengths, slots
