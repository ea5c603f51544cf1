"""Pictures from files, bytes and arrays, upright and in RGB."""

import hashlib
import io
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import RedipruneError
from .files import check_size, read_media
from .grey import eight_bits
from .limits import MediaLimits

ImageSource = str | Path | bytes | Image.Image | np.ndarray

# What is decoded; Pillow reads many more, some through other programs (EPS through Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
_NAMED = "JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"

# How to set a picture upright, by its EXIF orientation (Exif 2.32, tag 0x0112).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_opening = threading.Lock()  # `warnings.catch_warnings` changes what all threads see


def load_image(source: ImageSource, limits: MediaLimits | None = None) -> Image.Image:
    """Read a picture.

    Args:
        source: path or encoded bytes of a JPEG, PNG, WebP, GIF (its first picture), BMP, TIFF or PPM file, Pillow image,
            or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8 or uint16 (65535 is white).
        limits: what it may be at most; None is `MediaLimits.read()`.

    Returns:
        RGB image, turned upright as its EXIF orientation says, if that can be read. Transparency is laid over white, as
        transformers' image processors do. Grey of more than 8 bits is scaled (see `grey.eight_bits`).

    Raises:
        RedipruneError: there is no such file, it is no regular file, empty, damaged or no picture, or it is beyond a
            limit.
    """
    limits = limits or MediaLimits.read()
    name = str(source) if isinstance(source, str | Path) else "the image"
    if isinstance(source, str | Path):
        source = read_media(source, limits.image_bytes)
    elif isinstance(source, bytes):
        check_size(name, len(source), limits.image_bytes)
    elif isinstance(source, np.ndarray):
        source = _from_array(source)
    elif not isinstance(source, Image.Image):
        raise RedipruneError(f"an image must be a path, bytes, Pillow image or array, not {type(source).__name__}")
    if isinstance(source, bytes) and not source:
        raise RedipruneError(f"{name} is empty: give a picture such as a PNG or JPEG file")
    try:
        image = _open(source, limits) if isinstance(source, bytes) else source
        _check_shape(image, name, limits)
        return _upright_rgb(image, name)
    except (RedipruneError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise RedipruneError(f"{name} is not a picture that is read here: give a {_NAMED} file") from None
    except Image.DecompressionBombError:
        raise RedipruneError(_too_large(name, "more than 178 million pixels", limits)) from None
    except Exception:  # Pillow's plugins raise whatever a damaged file leads them to
        raise RedipruneError(f"{name} is damaged or not whole: save it again, or fetch it anew") from None


def image_key(image: Image.Image) -> str:
    """Content hash of a picture: equal for equal size, mode and pixels, whatever file they came from."""
    digest = hashlib.blake2b(f"{image.mode} {image.width}x{image.height} ".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _open(data: bytes, limits: MediaLimits) -> Image.Image:
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, for which the limit is stricter, and of odd metadata
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    shrink = 1
    while shrink < 8 and image.width * image.height > limits.image_pixels * shrink**2:
        shrink *= 2
    if shrink > 1:  # only JPEG can be decoded smaller; other formats let this pass
        image.draft("RGB", (image.width // shrink, image.height // shrink))
    if image.format == "TIFF":  # which reads what its EXIF points to while it is loaded, and fails where that is broken
        exif = image.getexif()
        for pointer in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
            exif.pop(pointer, None)
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype.kind == "f":
        raise RedipruneError(
            f"an image array must be uint8 or uint16, not {array.dtype}, whose white may be 1 or 255: "
            "give (255 * array).round().astype('uint8'), or what scales yours"
        )
    unsigned = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    if not unsigned or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise RedipruneError(
            "an image array must be uint8 or uint16 [height, width] or [height, width, 1, 3 or 4], "
            f"not {array.dtype} {list(array.shape)}"
        )
    if array.dtype.itemsize == 2:
        array = np.rint(array.astype(np.float32) / 257).astype(np.uint8)
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _check_shape(image: Image.Image, name: str, limits: MediaLimits) -> None:
    width, height = image.size
    if not width or not height:
        raise RedipruneError(f"{name} has no pixels ({width} × {height}): give another picture")
    if width * height > limits.image_pixels:
        raise RedipruneError(_too_large(name, f"{width} × {height} pixels", limits))
    if max(width, height) > limits.image_ratio * min(width, height):
        raise RedipruneError(
            f"{name} is a strip of {width} × {height} pixels: crop it to at most {limits.image_ratio} times its width"
        )


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()  # a TIFF turns itself, and then has no orientation left
    turn = _turn(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow would cut these off at 255
        image = eight_bits(image, name)
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    elif image.mode == "LAB":
        raise RedipruneError(f"{name} has its colours in CIELAB, which is not read here: save it in RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture's EXIF wants it turned; broken EXIF wants nothing."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever the parser makes of it, the pixels are as good as they are
        return None


def _too_large(name: str, size: str, limits: MediaLimits) -> str:
    return f"{name} has {size}: scale it to at most {limits.image_pixels / 1e6:g} million (models see far fewer)"
