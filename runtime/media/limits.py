"""What a picture or film may be at most, looked at before anything is decoded."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ..errors import RedipruneError

VARIABLE = "REDIPRUNE_MEDIA_LIMITS"


MOST_FRAMES = 100_000  # that may be asked for of one film, whatever its limits; more than any checkpoint asks for


@dataclass(frozen=True)
class MediaLimits:
    """Bounds of media, so that a file from anywhere costs bounded time and memory.

    Attributes:
        image_bytes: size of a picture's file.
        image_pixels: width × height of a picture; 150 MB in RGB, a few times that while it is resized. A JPEG above it
            is decoded at 1/2, 1/4 or 1/8 size. Pillow's own bound of 179 million pixels (`Image.MAX_IMAGE_PIXELS`)
            stays, whatever is written here.
        image_ratio: longest side over shortest; the shortest is scaled to the model's size, and the longest with it.
        video_bytes: size of a film's file.
        video_pixels: width × height of a frame; decoders keep up to 17 of them.
        video_seconds: length of a film, by the time stamps of its packets.
        video_packets: number of its compressed frames.
        sampled_pixels: pixels of all frames taken from one film together.
        request_pixels: pixels of all pictures and frames of one request together.
    """

    image_bytes: int = 256_000_000
    image_pixels: int = 50_000_000
    image_ratio: int = 200
    video_bytes: int = 4_000_000_000
    video_pixels: int = 10_000_000
    video_seconds: int = 7_200
    video_packets: int = 500_000
    sampled_pixels: int = 200_000_000
    request_pixels: int = 400_000_000

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise RedipruneError(f"limit {field.name} must be above 0, not {getattr(self, field.name)}")

    @classmethod
    def read(cls, settings: Iterable[str] = ()) -> "MediaLimits":
        """The defaults, changed by the environment's `REDIPRUNE_MEDIA_LIMITS`, changed by `settings`.

        Args:
            settings: "NAME=VALUE" each, a value as 20000000, 2e7 or 20M.

        Raises:
            RedipruneError: one is not of this form, or names no limit.
        """
        environment = os.environ.get(VARIABLE, "").replace(",", " ").split()
        changed = {}
        for source, texts in ((VARIABLE, environment), ("--limit", settings)):
            for text in texts:
                name, _, value = text.partition("=")
                if name not in {field.name for field in fields(cls)}:
                    known = ", ".join(field.name for field in fields(cls))
                    raise RedipruneError(f"{source} takes NAME=VALUE, NAME one of {known}, not '{text}'")
                changed[name] = _number(value, source, text)
        return replace(cls(), **changed)


def describe_limits() -> str:
    """The limits and their defaults in one line."""
    return ", ".join(f"{field.name} {field.default:,}" for field in fields(MediaLimits))


def _number(value: str, source: str, text: str) -> int:
    factor = {"k": 10**3, "M": 10**6, "G": 10**9}.get(value[-1:], 1)
    try:
        number = float(value if factor == 1 else value[:-1]) * factor
        return int(number)
    except (ValueError, OverflowError):
        raise RedipruneError(f"{source} takes a number such as 20000000, 2e7 or 20M, not '{text}'") from None
