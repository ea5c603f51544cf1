"""Pixels of Qwen-VL: pictures of any size, as rows of patches in groups of m × m; two frames of a video are one.

Sizes and order are those of transformers' `Qwen2VLImageProcessor`, `Qwen2VLVideoProcessor` and `Qwen3VLVideoProcessor`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import RedipruneError
from .qwen_grids import block_order, interpolation, windows

_LONGEST_RATIO = 200

Bounds = tuple[int, int]  # least and most pixels


@dataclass(frozen=True)
class QwenForm:
    """What the members of the family do not share.

    Attributes:
        side: of the tower's square grid of learned positions; None: it has none.
        window: groups along a side of the windows that layers attend within; None: there are none.
        stamps: whether the prompt says the time of each frame of a video. Bounds of pixels are then of all its frames
            together, otherwise of each.
        speed: positions in time for a second of a video; None: one for each frame.
        videos: usual bounds of a video's pixels.
    """

    side: int | None = None
    window: int | None = None
    stamps: bool = False
    speed: float | None = None
    videos: Bounds = (128 * 28 * 28, 768 * 28 * 28)

    @classmethod
    def of(cls, model_type: str, vision: dict[str, Any]) -> "QwenForm | None":
        """The form of a model type, given the `vision_config` of its config.json; None of other families."""
        if model_type == "qwen3_vl":
            side = int(vision["num_position_embeddings"] ** 0.5)
            return cls(side=side, stamps=True, videos=(128 * 32 * 32, 768 * 32 * 32))
        if model_type == "qwen2_5_vl":
            group = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)
            return cls(window=vision.get("window_size", 112) // group, speed=vision.get("tokens_per_second", 4))
        return cls() if model_type == "qwen2_vl" else None


class QwenPictures:
    """Makes a vision stage's inputs.

    Args:
        form: the family's.
        images: a `Qwen2VLImageProcessorPil`.
        videos: least and most pixels of a video.
        pictures: likewise of a picture; None: as the image processor has them.
    """

    def __init__(self, form: QwenForm, images: Any, videos: Bounds, pictures: Bounds | None = None):
        self.form, self.images, self.videos = form, images, videos
        self.pictures = pictures or (images.size.shortest_edge, images.size.longest_edge)
        self.merge, self.patch, self.temporal = images.merge_size, images.patch_size, images.temporal_patch_size

    @classmethod
    def of(cls, form: QwenForm, images: Any, settings: dict[str, Any]) -> "QwenPictures":
        """Bounds of a video as `settings` say: those of videos, or where there are none of pictures."""
        size = settings.get("size") or {}
        bounds = (
            settings.get("min_pixels") or size.get("shortest_edge") or form.videos[0],
            settings.get("max_pixels") or size.get("longest_edge") or form.videos[1],
        )
        if not all(type(bound) is int and bound > 0 for bound in bounds) or bounds[0] > bounds[1]:
            raise RedipruneError(
                f"a video's pixels cannot be from {bounds[0]!r} to {bounds[1]!r}: copy video_preprocessor_config.json anew"[
                    :300
                ]
            )
        return cls(form, images, bounds)

    @property
    def stamps(self) -> bool:
        """Whether the prompt says the time of each frame of a video."""
        return self.form.stamps

    def sized(self, least: int | None, most: int | None) -> "QwenPictures":
        """The same with other bounds of pixels, of pictures and videos alike; None leaves one as it is.

        Raises:
            RedipruneError: the least is above the most, or one is above the checkpoint's own most.
        """
        return QwenPictures(
            self.form,
            self.images,
            _bounds("a video", self.videos, least, most),
            _bounds("a picture", self.pictures, least, most),
        )

    def grid(self, frames: Sequence[Image.Image], video: bool = False) -> tuple[int, int]:
        """Rows and columns of groups of a picture, or of each frame of a video."""
        size, factor = (frames[0].height, frames[0].width), self.patch * self.merge
        if video and len(frames) < self.temporal:
            raise RedipruneError(f"a video needs {self.temporal} frames at least here, not {len(frames)}; ask for more")
        if video and self.form.stamps:
            height, width = fitted_frames(len(frames), size, factor, self.temporal, *self.videos)
        else:
            height, width = fitted_picture(size, factor, *(self.videos if video else self.pictures))
        return height // factor, width // factor

    def inputs(self, frames: Sequence[Image.Image], video: bool = False) -> dict[str, np.ndarray]:
        """`pixel_values` [F, G, m², X], and what is the same for all frames: positions, windows, where they are looked up."""
        rows, columns = self.grid(frames, video)
        height, width, m = rows * self.merge, columns * self.merge, self.merge
        groups = rows * columns
        if video:
            pixels = self._clip(frames, (height * self.patch, width * self.patch))
        else:
            least, most = self.pictures
            given = self.images(frames[0], size={"shortest_edge": least, "longest_edge": most})
            pixels = np.asarray(given.pixel_values, np.float32)
        found = {
            "pixel_values": pixels.reshape(-1, groups, m * m, pixels.shape[-1]),
            "positions": np.stack(block_order(height, width, m), axis=-1).reshape(groups, m * m, 2),
        }
        if self.form.side is not None:
            indices, weights = interpolation(height, width, m, self.form.side)
            found |= {
                "interp_indices": indices.reshape(groups, m * m, 4),
                "interp_weights": weights.reshape(groups, m * m, 4),
            }
        if self.form.window is not None:
            patches, lengths, slots = windows(height, width, m, self.form.window)
            slots = slots.reshape(groups, m * m)
            found |= {"window_patches": patches, "window_lengths": lengths, "window_slots": slots}
        return found

    def shown(self, frames: Sequence[Image.Image], video: bool, grid: tuple[int, int]) -> list[Image.Image]:
        """The pictures as the tower sees them, of rows × columns groups; of frames that make one the first."""
        rows, columns = grid
        factor, step = self.patch * self.merge, self.temporal if video else 1
        return [frame.resize((columns * factor, rows * factor), self._filter) for frame in frames[::step]]

    def seconds(self, frames: Sequence[Image.Image]) -> list[float]:
        """Times of a video's frames as the model sees them: the middle of those that make one."""
        times = [float(frame.info["seconds"]) for frame in frames]
        times += [times[-1]] * (-len(times) % self.temporal)
        return [(times[at] + times[at + self.temporal - 1]) / 2 for at in range(0, len(times), self.temporal)]

    def seconds_apart(self, frames: Sequence[Image.Image]) -> float:
        """Seconds from one of a video's frames to the next, as the model sees them (transformers' second_per_grid_ts)."""
        return self.temporal * float(frames[0].info["film_seconds"]) / len(frames)

    def pace(self, frames: Sequence[Image.Image], video: bool = False) -> float:
        """How far a frame's position in time is behind that of the frame before."""
        return 1.0 if self.form.speed is None or not video else self.form.speed * self.seconds_apart(frames)

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


def _bounds(what: str, usual: Bounds, least: int | None, most: int | None) -> Bounds:
    found = usual[0] if least is None else least, usual[1] if most is None else most
    if max(found) > usual[1]:
        raise RedipruneError(
            f"min_pixels and max_pixels must be at most what the checkpoint has for {what}, {usual[1]:,} pixels, not "
            f"{max(found):,}"
        )
    if found[0] > found[1]:
        raise RedipruneError(
            f"of {what}, min_pixels, {found[0]:,}, is above max_pixels, {found[1]:,}: give both, the least first"
        )
    return found


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
