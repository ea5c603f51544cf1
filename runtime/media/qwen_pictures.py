"""Pixels of Qwen-VL: pictures of any size, as rows of patches in groups of m × m; two frames of a video are one.

Sizes and order are those of transformers' `Qwen2VLImageProcessor` and `Qwen3VLVideoProcessor`; what a tower needs to know of
a grid is computed here, as in transformers' `vision_utils`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import RedipruneError

_LONGEST_RATIO = 200


class QwenPictures:
    """Makes a vision stage's inputs.

    Args:
        images: a `Qwen2VLImageProcessorPil`.
        videos: settings of videos: least and most pixels of all frames together, `shortest_edge` and `longest_edge`.
        side: of the tower's square grid of learned positions.
    """

    def __init__(self, images: Any, videos: dict[str, int], side: int):
        self.images, self.videos, self.side = images, videos, side
        self.merge, self.patch, self.temporal = images.merge_size, images.patch_size, images.temporal_patch_size

    def grid(self, frames: Sequence[Image.Image], video: bool = False) -> tuple[int, int]:
        """Rows and columns of groups of a picture, or of each frame of a video."""
        size, factor = frames[0], self.patch * self.merge
        if video:
            if len(frames) < self.temporal:
                raise RedipruneError(
                    f"a video needs {self.temporal} frames at least here, not {len(frames)}; ask for more"
                )
            budget = self.videos["shortest_edge"], self.videos["longest_edge"]
            height, width = fitted_frames(len(frames), (size.height, size.width), factor, self.temporal, *budget)
        else:
            budget = self.images.size.shortest_edge, self.images.size.longest_edge
            height, width = fitted_picture((size.height, size.width), factor, *budget)
        return height // factor, width // factor

    def inputs(self, frames: Sequence[Image.Image], video: bool = False) -> dict[str, np.ndarray]:
        """`pixel_values` [F, G, m², X], and what is the same for all frames: positions and where they are looked up."""
        rows, columns = self.grid(frames, video)
        height, width, m = rows * self.merge, columns * self.merge, self.merge
        groups = rows * columns
        if video:
            pixels = self._clip(frames, (height * self.patch, width * self.patch))
        else:
            pixels = np.asarray(self.images(frames[0]).pixel_values, np.float32)
        indices, weights = interpolation(height, width, m, self.side)
        return {
            "pixel_values": pixels.reshape(-1, groups, m * m, pixels.shape[-1]),
            "positions": np.stack(block_order(height, width, m), axis=-1).reshape(groups, m * m, 2),
            "interp_indices": indices.reshape(groups, m * m, 4),
            "interp_weights": weights.reshape(groups, m * m, 4),
        }

    def shown(self, frames: Sequence[Image.Image], video: bool = False) -> list[Image.Image]:
        """The pictures as the tower sees them; of frames that make one the first."""
        rows, columns = self.grid(frames, video)
        factor = self.patch * self.merge
        return [frame.resize((columns * factor, rows * factor), self._filter) for frame in frames[:: self._step(video)]]

    def seconds(self, frames: Sequence[Image.Image]) -> list[float]:
        """Times of a video's frames as the model sees them: the middle of those that make one."""
        times = [float(frame.info["seconds"]) for frame in frames]
        times += [times[-1]] * (-len(times) % self.temporal)
        return [(times[at] + times[at + self.temporal - 1]) / 2 for at in range(0, len(times), self.temporal)]

    def _step(self, video: bool) -> int:
        return self.temporal if video else 1

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling(int(self.images.resample))

    def _clip(self, frames: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
        """Rows of pixels [F, patches, X]: a patch of each frame that make one, behind each other within each colour."""
        height, width = size
        rows = []
        for frame in frames:
            fitted = frame.resize((width, height), self._filter)
            found = np.asarray(self.images(fitted, do_resize=False).pixel_values, np.float32)  # the frame repeated
            rows.append(found.reshape(len(found), -1, self.temporal, self.patch**2)[:, :, 0])  # [patches, 3, p²]
        rows += [rows[-1]] * (-len(rows) % self.temporal)
        pairs = np.stack(rows).reshape(-1, self.temporal, *rows[0].shape)  # [F, frames, patches, 3, p²]
        return pairs.transpose(0, 2, 3, 1, 4).reshape(len(pairs), len(rows[0]), -1)


def fitted_picture(size: tuple[int, int], factor: int, least: int, most: int) -> tuple[int, int]:
    """Height and width, multiples of `factor`, of a picture with `least` to `most` pixels (transformers' `smart_resize`).

    Raises:
        RedipruneError: it is too elongated.
    """
    height, width = size
    _check_ratio(height, width)
    fitted = round(height / factor) * factor, round(width / factor) * factor
    if fitted[0] * fitted[1] > most:
        return _shrunk(height, width, math.sqrt(height * width / most), factor)
    if fitted[0] * fitted[1] < least:
        return _grown(height, width, math.sqrt(least / (height * width)), factor)
    return fitted


def fitted_frames(
    frames: int, size: tuple[int, int], factor: int, temporal: int, least: int, most: int
) -> tuple[int, int]:
    """The same for the frames of a video, `least` and `most` pixels being of all of them together."""
    height, width = size
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    fitted = round(height / factor) * factor, round(width / factor) * factor
    pixels = round(frames / temporal) * temporal * fitted[0] * fitted[1]
    if pixels > most:
        return _shrunk(height, width, math.sqrt(frames * height * width / most), factor)
    if pixels < least:
        return _grown(height, width, math.sqrt(least / (frames * height * width)), factor)
    return fitted


def _check_ratio(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > _LONGEST_RATIO:
        raise RedipruneError(
            f"a picture of {width} × {height} pixels is too elongated: at most {_LONGEST_RATIO} times as long as wide"
        )


def _shrunk(height: int, width: int, beta: float, factor: int) -> tuple[int, int]:
    sides = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
    return next(sides), next(sides)


def _grown(height: int, width: int, beta: float, factor: int) -> tuple[int, int]:
    return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor


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
