"""A picture is prepared before anything is exported: what the processor makes must be what the tower takes."""

from typing import Any

import numpy as np
from PIL import Image

from ...runtime.errors import RedipruneError
from ...runtime.media.processor import Processor


def try_picture(processor: Processor, vision_config: Any, video: bool) -> None:
    """Prepare a picture, and the frames of a video where the family takes videos.

    Args:
        processor: the checkpoint's.
        vision_config: of the tower, which says the side of what it takes.
        video: whether videos are taken.

    Raises:
        RedipruneError: the processor's settings cannot be used, or make something else than the tower takes.
    """
    picture = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    side = getattr(vision_config, "image_size", None)
    rows, columns = side if isinstance(side, list | tuple) else (side, side)
    for film in (False, True) if video else (False,):
        pixels = processor.vision_inputs([picture] * (2 if film else 1), film)[
            "pixel_values"
        ]  # [F, 3, H, W], or patches of any picture
        expected = (3, rows, columns)
        if processor.qwen is None and pixels.shape[1:] != expected:
            raise RedipruneError(
                f"the image processor makes pictures of shape {list(pixels.shape[1:])}, but the vision tower takes "
                f"{list(expected)}; the checkpoint's preprocessor_config.json and config.json are of different models: "
                "download both again"
            )
        if not np.isfinite(pixels).all():
            raise RedipruneError(
                "the image processor makes pixels that are no numbers; image_std and rescale_factor in the checkpoint's "
                "preprocessor_config.json must not be 0: download it again"
            )
