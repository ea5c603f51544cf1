"""Frames of a video, sampled uniformly."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
from PIL import Image

from ..errors import RedipruneError

VideoSource = str | Path | bytes
_GRID = 32  # cells of a frame to a side


def load_video(source: VideoSource, frames: int) -> list[Image.Image]:
    """Read frames spread evenly over a video, the first and the last among them.

    The indices are `linspace(0, n − 1, frames)` cut to whole numbers, n being the frames that decode, as in
    the release. A video shorter than `frames` repeats frames. Only the sampled frames are held in memory.

    Args:
        source: path or encoded bytes, in any container and codec that FFmpeg reads.
        frames: how many.

    Returns:
        `frames` RGB images, upright, in time order.

    Raises:
        RedipruneError: there is no such file, it holds no video, no frame decodes, or it is damaged.
    """
    if isinstance(frames, bool) or not isinstance(frames, int | np.integer) or frames < 1:
        raise RedipruneError(f"frames must be a whole number from 1 on, not {frames!r}")
    name = "the video" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise RedipruneError(f"there is no file {source}")
    try:
        # One packet is one frame in nearly every file: count packets, which is fast, and decode once. Should
        # the decoder yield another number, it has counted the frames by then: decode again with that number.
        picked, decoded = _pick(source, _indices(_count_packets(source), frames))
        if len(picked) < frames:
            picked, decoded = _pick(source, _indices(decoded, frames))
    except av.error.FFmpegError as error:
        raise RedipruneError(
            f"{name} cannot be decoded ({error.strerror}): convert it to H.264 in MP4, or fetch it anew"
        ) from None
    if not picked:
        raise RedipruneError(f"{name} has no video frames: give a file with a video stream")
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


def _indices(count: int, frames: int) -> list[int]:
    return np.linspace(0, count - 1, frames).astype(int).tolist() if count else []


def _open(source: VideoSource) -> av.container.InputContainer:
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), mode="r")


def _count_packets(source: VideoSource) -> int:
    with _open(source) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0)) if container.streams.video else 0


def _pick(source: VideoSource, indices: list[int]) -> tuple[list[Image.Image], int]:
    """Frames at ascending `indices`, none unless the last of these is the last frame; the count of frames."""
    picked: list[Image.Image] = []
    decoded = 0
    for frame in _decode(source):
        if len(picked) < len(indices) and indices[len(picked)] == decoded:
            picked += [_upright(frame)] * indices.count(decoded)
        decoded += 1
    fits = len(indices) == 1 or (indices and indices[-1] == decoded - 1)
    return (picked if fits else []), decoded


def _decode(source: VideoSource) -> Iterator[av.VideoFrame]:
    with _open(source) as container:
        if container.streams.video:
            container.streams.video[0].thread_type = "AUTO"
            yield from container.decode(video=0)


def _upright(frame: av.VideoFrame) -> Image.Image:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    # FFmpeg gives the anticlockwise turn that sets the picture upright, Pillow turns anticlockwise too.
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
