"""The forms that settings of a checkpoint's processor must have; others are refused by name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import RedipruneError
from .limits import MOST_FRAMES

_MOST_PIXELS = 16_384  # of a side of what a tower sees


def check_processor_forms(folder: Path, patch: Any, frames: Any, tokens: tuple[Any, Any]) -> None:
    """Refuse a patch size, a number of frames or placeholders that are none.

    Args:
        folder: named in the message.
        patch: side of a patch, or its height and width.
        frames: of a video; None is open.
        tokens: the placeholders.

    Raises:
        RedipruneError: names the setting and its value.
    """
    sides = patch if isinstance(patch, list) and patch else [patch]
    good = all(type(side) is int and side > 0 for side in sides)
    _check(folder, "patch_size", patch, good, "a whole number above 0")
    good = frames is None or (type(frames) is int and 0 < frames <= MOST_FRAMES)
    _check(folder, "num_frames", frames, good, f"a whole number from 1 to {MOST_FRAMES}")
    good = all(isinstance(token, str) and token for token in tokens)
    _check(folder, "image_token or video_token", tokens, good, "a text")


def check_sides(sides: Iterable[Any]) -> None:
    """Refuse sides of a picture that are none, or that no tower sees; None is open.

    Raises:
        RedipruneError: names the value.
    """
    for side in sides:
        if side is not None and not (type(side) is int and 0 < side <= _MOST_PIXELS):
            raise RedipruneError(
                f"size and crop_size of the image processor must be whole numbers from 1 to {_MOST_PIXELS}, not {side!r}: "
                "copy preprocessor_config.json anew"
            )


def _check(folder: Path, name: str, value: Any, good: bool, form: str) -> None:
    if not good:
        raise RedipruneError(f"{name} in {folder} must be {form}, not {value!r}: copy the file anew"[:400])
