"""A picture and a clip made on the spot, for checks that are given none."""

import io

import av
import numpy as np
from PIL import Image, ImageDraw

_SIDE = 256


def sample_picture(step: int = 0) -> Image.Image:
    """A red ball and a blue square on a gradient with grain; `step` moves the ball. The same bytes every time."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    grain = np.random.default_rng(7).normal(0, 12, (_SIDE, _SIDE, 3))
    pixels = np.stack([90 + 90 * rows, 120 + 60 * columns, 150 - 70 * rows], axis=-1) + grain
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((110 + 8 * step, 90, 170 + 8 * step, 150), fill=(214, 40, 40))
    draw.rectangle((30, 150, 90, 210), fill=(38, 70, 200))
    return image


def sample_clip(frames: int = 12) -> bytes:
    """An MP4 clip of the ball moving to the right."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        for step in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(sample_picture(step))))
        container.mux(stream.encode())
    return file.getvalue()
