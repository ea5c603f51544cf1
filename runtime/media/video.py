"""Frames of a video, sampled uniformly."""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..errors import RedipruneError
from .files import check_size, open_media
from .film import FORMATS, DamagedError, Film
from .limits import MOST_FRAMES, MediaLimits

VideoSource = str | Path | bytes
_GRID = 32  # cells of a frame to a side


def load_video(
    source: VideoSource,
    frames: int,
    limits: MediaLimits | None = None,
    warn: Callable[[str], object] = warnings.warn,
    pulse: Callable[[], object] = lambda: None,
) -> list[Image.Image]:
    """Read frames spread evenly over a video, the first and the last among them.

    The indices are `linspace(0, n − 1, frames)` cut to whole numbers, n being the frames that decode, as in
    the release. A video shorter than `frames` repeats frames. Only the sampled frames are held in memory.

    Args:
        source: path or encoded bytes of MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV, Ogg or GIF. Of several streams
            the default one is read; cover art is none.
        frames: how many.
        limits: what it may be at most; None is `MediaLimits.read()`.
        warn: is told in one line what of it is damaged, where other frames can be read.
        pulse: called before every frame that is decoded; a `RedipruneError` that it raises ends the work.

    Returns:
        `frames` RGB images, upright, in time order; `info["seconds"]` of each is its time, `info["film_seconds"]` how long the
        whole film lasts.

    Raises:
        RedipruneError: there is no such file, it is no regular file, holds no video, no frame decodes, or it is beyond
            a limit.
    """
    if isinstance(frames, bool) or not isinstance(frames, int | np.integer) or frames < 1:
        raise RedipruneError(f"frames must be a whole number from 1 on, not {frames!r}")
    if frames > MOST_FRAMES:
        raise RedipruneError(f"frames must be at most {MOST_FRAMES:,}, not {frames:,}")
    limits = limits or MediaLimits.read()
    name = "the video" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        check_size(name, len(source), limits.video_bytes)
    with io.BytesIO(source) if isinstance(source, bytes) else open_media(source, limits.video_bytes) as file:
        film = Film(file, name, limits)
        try:
            picked, decoded = _sample(film, int(frames), pulse)
        except (RedipruneError, MemoryError):
            raise
        except Exception:  # FFmpeg's errors, and what its bindings make of damaged metadata
            raise RedipruneError(
                f"{name} cannot be decoded: it is damaged, or no {FORMATS} file; convert it to H.264 in MP4, or fetch it anew"
            ) from None
    if not picked:
        raise RedipruneError(f"{name} has no video frames: give a file with a video stream")
    if damage := film.damage(decoded):
        warn(f"{name} is damaged: {damage}")
    return picked


def stand_ins(frames: Sequence[Image.Image], tolerance: float) -> np.ndarray:
    """For each frame the number of the one whose features it can take: its own, or that of an earlier, similar one.

    Frames are similar where in no cell of a 32 × 32 grid the mean of a colour differs by more than `tolerance`; each is
    compared with the last that stands for itself, so that slow change is not missed. At 0 the frames must be equal.

    Args:
        frames: of one size, in time order.
        tolerance: in colour levels, of 255.

    Returns:
        [F] int64, ascending.
    """
    stand_in = np.arange(len(frames))
    last, seen = 0, None
    for at, frame in enumerate(frames):
        cells = frame if tolerance == 0 else frame.resize((_GRID, _GRID), Image.Resampling.BOX)
        levels = np.asarray(cells, np.int16)
        if seen is not None and levels.shape == seen.shape and np.abs(levels - seen).max() <= tolerance:
            stand_in[at] = last
        else:
            last, seen = at, levels
    return stand_in


def _sample(film: Film, frames: int, pulse: Callable[[], object]) -> tuple[list[Image.Image], int]:
    """The sampled frames, and how many were decoded."""
    # One packet is one frame in nearly every file: count packets, which is fast, and decode once. Should
    # the decoder yield another number, it has counted the frames by then: decode again with that number.
    count = _count_packets(film)
    for _ in range(4):
        try:
            picked, decoded = _pick(film, _indices(count, frames), pulse)
        except DamagedError:
            film.careful = True
            continue
        if len(picked) == frames:
            return picked, decoded
        if not decoded and film.lost:
            raise DamagedError
        count = decoded
    return [], 0


def _indices(count: int, frames: int) -> list[int]:
    return np.linspace(0, count - 1, frames).astype(int).tolist() if count else []


def _count_packets(film: Film) -> int:
    return film.count_packets()


def _pick(film: Film, indices: list[int], pulse: Callable[[], object]) -> tuple[list[Image.Image], int]:
    """Frames at ascending `indices`, none unless the last of these is the last frame; the count of frames."""
    picked: list[Image.Image] = []
    decoded = pixels = 0
    for frame in film.frames():
        pulse()
        if len(picked) < len(indices) and indices[len(picked)] == decoded:
            repeats = indices.count(decoded)  # of a video shorter than the frames asked for
            pixels += repeats * frame.width * frame.height
            if pixels > film.limits.sampled_pixels:
                raise RedipruneError(
                    f"{len(indices)} frames of {frame.width} × {frame.height} pixels are more than "
                    f"{film.limits.sampled_pixels / 1e6:g} million together: take fewer, or raise the limit "
                    "(rediprune run --help)"
                )
            upright = _upright(frame)
            upright.info["seconds"] = decoded / film.rate
            picked += [upright] * repeats
        decoded += 1
    for image in picked:
        image.info["film_seconds"] = decoded / film.rate
    fits = len(indices) == 1 or (indices and indices[-1] == decoded - 1)
    return (picked if fits else []), decoded


def _upright(frame: av.VideoFrame) -> Image.Image:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    # FFmpeg gives the anticlockwise turn that sets the picture upright, Pillow turns anticlockwise too.
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
