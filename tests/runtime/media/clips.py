"""Clips made frame by frame, so that it is known which frames must come back."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def make_video(path: Any, count: int, size: tuple[int, int] = (64, 48), codec: str = "libx264", **options: str) -> Any:
    """A clip of 10 frames a second whose frame i is grey of brightness 8·i, its upper left quarter white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height = size  # pyright: ignore[reportAttributeAccessIssue]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"  # pyright: ignore[reportAttributeAccessIssue]
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture_of(i, size), format="rgb24")
            container.mux(stream.encode(frame))  # pyright: ignore
        container.mux(stream.encode(None))  # pyright: ignore
    return path


def picture_of(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Frame `number` of `make_video`, [height, width, 3] uint8."""
    pixels = np.full((size[1], size[0], 3), 8 * number, np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    return pixels


def number_of(image: Image.Image) -> int:
    """Which frame of `make_video` an image is."""
    return round(float(np.asarray(image)[-10:, -10:].mean()) / 8)


def jpeg(colour: str = "magenta") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def packets_of(path: Path) -> list[tuple[int, int]]:
    """(position, size) in the file of every packet of the first video stream."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pos]
