"""How a family's prompt shows an image or a video: the text that takes the place of its placeholder.

Most families have one placeholder for all of an image's or a video's tokens. Others write text around them, or between
the frames; each then has a placeholder of its own.
"""

from collections.abc import Callable, Sequence

from PIL import Image

from .qwen_pictures import QwenPictures
from .split_pictures import SplitPictures

Expand = Callable[[str, Sequence[Image.Image]], str]  # kind and frames → text


def expansion_of(
    model_type: str,
    image_token: str,
    video_token: str,
    qwen: QwenPictures | None = None,
    split: SplitPictures | None = None,
) -> Expand:
    """How a family expands placeholders.

    Args:
        model_type: of config.json.
        image_token, video_token: its placeholders, as they stand in a rendered prompt.
        qwen: gives the times of a video's frames, where they are written.
        split: how pictures are cut, where each tile has a mark of its own.

    Returns:
        From a medium's kind and frames to the text in place of its placeholder. The placeholders in it stand for equal
        numbers of frames or tiles.
    """
    if model_type == "internvl":
        return lambda kind, frames: _internvl(kind, len(frames), image_token)
    if split is not None:
        return lambda kind, frames: split.text(frames[0], image_token)
    if qwen is not None and qwen.stamps:
        return lambda kind, frames: image_token if kind == "image" else _qwen3(qwen.seconds(frames), video_token)
    return lambda kind, frames: image_token if kind == "image" else video_token


def _internvl(kind: str, frames: int, token: str) -> str:
    """As transformers' `InternVLProcessor`: all tiles of an image in one row; a video's frames by number."""
    shown = f"<img>{token}</img>"
    return shown if kind == "image" else "\n".join(f"Frame{at}: {shown}" for at in range(1, frames + 1))


def _qwen3(seconds: Sequence[float], token: str) -> str:
    """As transformers' `Qwen3VLProcessor`: the time of each frame before it."""
    return "".join(f"<{at:.1f} seconds><|vision_start|>{token}<|vision_end|>" for at in seconds)
