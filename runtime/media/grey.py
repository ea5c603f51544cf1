"""Grey pictures of more than 8 bits."""

import numpy as np
from PIL import Image

from ..errors import RedipruneError

_UNSIGNED = 1  # of TIFF's tag SampleFormat
_SAMPLE_FORMAT = 339


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits.

    What is white follows from the type where it can: 65535 in 16 bits (and in PNG and PPM, which Pillow may widen to 32).
    For 32-bit integers it is the largest value of 8, 16 or 32 bits, the fewest that hold every pixel, as programs write
    narrower pictures into wider files; for floats it is 1 if no pixel is above, and otherwise 255 or 65535.

    Args:
        image: of mode I;16 (any byte order), I or F.
        name: of the picture, for messages.

    Returns:
        Image of mode L.

    Raises:
        RedipruneError: values below 0, none that is finite, or of a scale that cannot be told.
    """
    values = np.asarray(image)  # [height, width]
    if image.mode == "I" and image.format == "TIFF" and _sample_format(image) == _UNSIGNED:
        values = values.view(np.uint32)  # Pillow has no unsigned mode
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RedipruneError(f"{name} has pixels that are no finite numbers: fill them, or save it with 8 bits")
    low, high = float(values.min()), float(values.max())
    if low < 0:
        raise RedipruneError(f"{name} has pixels down to {low:g}: scale it to 0 and above, or save it with 8 bits")
    white = _white(image, values.dtype, high)
    if white is None:
        raise RedipruneError(f"{name} has pixels up to {high:g}, so what is white cannot be told: save it with 8 bits")
    scaled = values.astype(np.float32)
    scaled *= 255 / white
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


def _white(image: Image.Image, dtype: np.dtype, high: float) -> float | None:
    """The value of white; None where it cannot be told."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 65535
    if image.mode == "I":
        wide = np.iinfo(dtype).max if high >= 2**24 else 0  # less would be all but black in 32 bits
        return next((white for white in (255, 65535, wide) if high <= white), None)
    if high <= 1:
        return 1
    # Just above 1 it may be light beyond white, which is no level of 255.
    return next((white for white in (255, 65535) if 16 <= high <= white), None)


def _sample_format(image: Image.Image) -> int | None:
    tag = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (_UNSIGNED,))
    return tag[0] if isinstance(tag, tuple) and tag else None
