"""The picture of the kept patches: what the model was shown, with everything it dropped dimmed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..answer import Answer
from ..errors import RedipruneError
from .processor import Processor

_INK = (32, 36, 44)
_MUTED = (112, 118, 130)
_PAPER = (255, 255, 255)
_OUTLINE = (255, 209, 64)
_MARGIN = 16


def draw_kept(
    images: Sequence[Image.Image],
    kept: Sequence[np.ndarray],
    grid: tuple[int, int],
    leading: int = 0,
    question: str | None = None,
    answer: str | None = None,
    labels: Sequence[str] | None = None,
    bare: bool = False,
) -> Image.Image:
    """Draw pictures or a video's frames with their dropped patches dark and grey, the kept ones as they are.

    Args:
        images: as the model saw them, resized and cropped (see `Processor.seen`), all of one size. Small ones
            are enlarged by a whole factor.
        kept: for each image its kept token indices, [K] integers.
        grid: (rows, columns) of tokens over an image; row by row, the last rows of pixels may lie outside.
        leading: tokens before the first patch in index space (1 where CLS stays). Counted, not drawn.
        question: written under the pictures.
        answer: written under the question.
        labels: written under each picture; by default its number, where there are several.
        bare: without margin, counts and paper, for who shows them in a place of his own.

    Returns:
        RGB image; bare RGBA, transparent between the pictures.

    Raises:
        ValueError: not one index array for each image, or an index outside the grid.
    """
    rows, columns = grid
    tokens = leading + rows * columns
    if not images or len(images) != len(kept):
        raise ValueError(f"{len(images)} images need as many index arrays, not {len(kept)}")
    if any(len(indices) and not 0 <= np.min(indices) <= np.max(indices) < tokens for indices in kept):
        raise ValueError(f"kept indices must lie between 0 and {tokens - 1}")
    several = len(images) > 1
    least = 224 if several else 448  # pixels
    factor = max(1, -(-least // max(images[0].size)))
    pictures = [
        _dim(_enlarge(image, factor), indices, grid, leading) for image, indices in zip(images, kept, strict=True)
    ]

    count = sum(len(indices) for indices in kept)
    total = tokens * len(images)
    counts = f"{count} of {total} tokens kept ({100 * count / total:.0f} %)"
    if several and labels is None:
        labels = [str(number) for number in range(1, len(images) + 1)]
    return _compose(pictures, labels, [] if bare else [(counts, _MUTED), (question, _INK), (answer, _INK)])


def _enlarge(image: Image.Image, factor: int) -> Image.Image:
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def _dim(image: Image.Image, indices: np.ndarray, grid: tuple[int, int], leading: int) -> Image.Image:
    """Darken and grey what is not kept; an outline on its side of the border leaves the kept pixels alone."""
    rows, columns = grid
    pixels = np.asarray(image, np.float32)  # [height, width, 3]
    height, width = pixels.shape[:2]
    cell = height // rows, width // columns
    patches = np.asarray(indices, int) - leading
    chosen = np.zeros(rows * columns, bool)
    chosen[patches[patches >= 0]] = True
    mask = np.zeros((height, width), bool)
    area = chosen.reshape(grid).repeat(cell[0], axis=0).repeat(cell[1], axis=1)
    mask[: area.shape[0], : area.shape[1]] = area

    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    dropped = 0.35 * (0.3 * pixels + 0.7 * grey[:, :, None])
    dropped[_grow(mask, 2 if min(cell) >= 28 else 1) & ~mask] = _OUTLINE
    return Image.fromarray(np.where(mask[:, :, None], pixels, dropped).astype(np.uint8))


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask [height, width] and the pixels that lie within `steps` of it."""
    for axis in (0, 1):
        padded = np.pad(mask, [(steps, steps) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * steps + 1, axis=axis)
        mask = np.any(windows, axis=windows.ndim - 1)
    return mask


def _compose(
    pictures: list[Image.Image],
    labels: Sequence[str] | None,
    lines: list[tuple[str | None, tuple[int, int, int]]],
) -> Image.Image:
    """Pictures side by side, four in a row, with labels under them and lines of text below; without lines no paper."""
    size, small = ImageFont.load_default(18), ImageFont.load_default(13)
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    label_height = 20 if labels else 0
    gap, margin = 8, _MARGIN if lines else 0
    canvas_width = 2 * margin + columns * width + (columns - 1) * gap
    body = rows * (height + label_height) + (rows - 1) * gap
    texts = [(line, colour) for text, colour in lines if text for line in _wrap(text, size, canvas_width - 2 * margin)]
    line_height = 26
    below = 10 + line_height * len(texts) if lines else 0
    size_of_all = canvas_width, 2 * margin + body + below
    canvas = Image.new("RGB", size_of_all, _PAPER) if lines else Image.new("RGBA", size_of_all, (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, picture in enumerate(pictures):
        left = margin + number % columns * (width + gap)
        top = margin + number // columns * (height + label_height + gap)
        canvas.paste(picture, (left, top))
        if labels:
            draw.text((left, top + height + 3), labels[number], _MUTED, small)
    for number, (line, colour) in enumerate(texts):
        draw.text((margin, margin + body + 10 + number * line_height), line, colour, size)
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words where it can be."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def draw_answer(answer: Answer, processor: Processor, question: str | None = None, bare: bool = False) -> Image.Image:
    """Draw all images and videos of an answer; those with another grid of tokens stand below each other.

    Args:
        answer: asked for with `return_visuals=True`.
        processor: the bundle's.
        question: written under the pictures.
        bare: the pictures alone, as in `draw_kept`.

    Raises:
        RedipruneError: the question was about text only, or its visuals were not asked for.
    """
    processor = processor.of_images(sum(visual.kind == "image" for visual in answer.visuals))
    groups: dict[tuple[Any, ...], tuple[list[Image.Image], list[np.ndarray], list[str]]] = {}
    for number, visual in enumerate(answer.visuals, start=1):
        spec = visual.spec
        pictures = processor.shown(visual.frames, visual.kind == "video", visual.grid)
        grid = visual.grid or (spec.rows, spec.columns)
        images, kept, labels = groups.setdefault((*grid, spec.leading), ([], [], []))
        images += pictures
        kept += list(visual.kept)
        part = {"video": "frame", "image": "tile" if len(pictures) > 1 else ""}[visual.kind]
        named = f"{visual.kind} {number}" if len(answer.visuals) > 1 else ""
        labels += [f"{named} {part} {at}".strip() if part else named for at in range(1, len(pictures) + 1)]
    if not groups and answer.kept:
        raise RedipruneError("the answer has no visuals to draw; ask with return_visuals=True")
    if not groups:
        raise RedipruneError("there is no picture of kept patches: the question had no image or video")
    drawn = []
    for at, ((rows, columns, leading), (images, kept, labels)) in enumerate(groups.items(), start=1):
        last = at == len(groups)
        drawn.append(
            draw_kept(
                images,
                kept,
                (rows, columns),
                leading,
                question if last else None,
                answer.text if last else None,
                labels if len(images) > 1 else None,
                bare,
            )
        )
    size = max(d.width for d in drawn), sum(d.height for d in drawn)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0)) if bare else Image.new("RGB", size, _PAPER)
    top = 0
    for picture in drawn:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet
