"""Pictures from files, bytes and arrays, upright and in RGB."""

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import RedipruneError

ImageSource = str | Path | bytes | Image.Image | np.ndarray

MAX_PIXELS = 50_000_000  # 150 MB in RGB, a few times that while it is resized
MAX_RATIO = 200  # the shortest side is scaled to the model's picture and the longest grows with it


def load_image(source: ImageSource) -> Image.Image:
    """Read a picture.

    Args:
        source: path, encoded bytes, Pillow image, or uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    Returns:
        RGB image, turned upright as its EXIF orientation says. Transparency is laid over white, as
        transformers' image processors do. JPEGs above `MAX_PIXELS` are decoded at 1/2, 1/4 or 1/8 size.

    Raises:
        RedipruneError: there is no such file, it is empty, damaged or no picture, or it is larger than
            `MAX_PIXELS` or longer than `MAX_RATIO` times its width.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "the image")
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "the image")
    if isinstance(source, bytes):
        name, data = "the image", source
    elif isinstance(source, str | Path):
        name, data = str(source), _read(Path(source))
    else:
        raise RedipruneError(f"an image must be a path, bytes, Pillow image or array, not {type(source).__name__}")
    if not data:
        raise RedipruneError(f"{name} is empty: give a picture such as a PNG or JPEG file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            image = Image.open(io.BytesIO(data))
        shrink = 1
        while shrink < 8 and image.width * image.height > MAX_PIXELS * shrink**2:
            shrink *= 2
        if shrink > 1:  # only JPEG can be decoded smaller; other formats let this pass
            image.draft("RGB", (image.width // shrink, image.height // shrink))
        return _upright_rgb(image, name)
    except UnidentifiedImageError:
        raise RedipruneError(f"{name} is not a picture: give a PNG or JPEG file") from None
    except Image.DecompressionBombError:
        raise RedipruneError(_too_large(name, "more than 178 million pixels")) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RedipruneError(f"{name} is damaged ({error}): save it again, or fetch it anew") from None


def image_key(image: Image.Image) -> str:
    """Content hash of a picture: equal for equal size, mode and pixels, whatever file they came from."""
    digest = hashlib.blake2b(f"{image.mode} {image.width}x{image.height} ".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RedipruneError(f"there is no file {path}") from None
    except OSError as error:
        raise RedipruneError(f"{path} cannot be read: {error.strerror}") from None


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise RedipruneError(
            "an image array must be uint8 [height, width] or [height, width, 1, 3 or 4], "
            f"not {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RedipruneError(_too_large(name, f"{width} × {height} pixels"))
    if max(width, height) > MAX_RATIO * min(width, height):
        raise RedipruneError(
            f"{name} is a strip of {width} × {height} pixels: crop it to at most {MAX_RATIO} times its width"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would cut it off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _too_large(name: str, size: str) -> str:
    return f"{name} has {size}: scale it to at most {MAX_PIXELS // 10**6} million (models see far fewer)"
