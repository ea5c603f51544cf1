"""The picture of kept patches: kept ones as they were, dropped ones dimmed, the counts written down."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from rediprune.runtime.media.visualize import draw_kept

MARGIN = 16


def photo(side=448, seed=0):
    coarse = np.random.default_rng(seed).integers(60, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def pictures(drawn, side, number=1):
    """The pictures of a sheet, as arrays [side, side, 3]."""
    sheet = np.asarray(drawn).astype(int)
    corners = [(MARGIN + i // 4 * (side + 28), MARGIN + i % 4 * (side + 8)) for i in range(number)]  # 28: gap and label
    return [sheet[top : top + side, left : left + side] for top, left in corners]


def cells(picture, grid):
    """[rows · columns, height, width, 3]"""
    rows, columns = grid
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    picture = picture[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    return picture.swapaxes(1, 2).reshape(rows * columns, height, width, 3)


def check(picture, original, kept, grid):
    before, after = cells(np.asarray(original).astype(int), grid), cells(picture, grid)
    for index in range(grid[0] * grid[1]):
        if index in kept:
            assert np.array_equal(after[index], before[index])
        else:
            # Without the border, where an outline may be: much darker, and greyer.
            inner, was = after[index][2:-2, 2:-2], before[index][2:-2, 2:-2]
            assert inner.mean() < 0.5 * was.mean()
            assert np.ptp(inner, axis=2).mean() < 0.5 * np.ptp(was, axis=2).mean() + 1


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (32, 32), (4, 8)])
def test_kept_cells_stay_and_dropped_cells_are_dimmed(grid):
    image = photo()
    kept = np.random.default_rng(1).permutation(grid[0] * grid[1])[: grid[0] * grid[1] // 6]
    check(pictures(draw_kept([image], [kept], grid), 448)[0], image, kept, grid)


def test_everything_kept_is_the_picture_itself():
    image = photo()
    drawn = draw_kept([image], [np.arange(64)], (8, 8))
    assert np.array_equal(pictures(drawn, 448)[0], image)


def test_nothing_drawn_for_tokens_before_the_first_patch():
    image = photo()
    kept = np.array([0, 1, 30])  # CLS, patch 0, patch 29
    check(pictures(draw_kept([image], [kept], (8, 8), leading=1), 448)[0], image, {0, 29}, (8, 8))


def test_pixels_outside_the_grid_are_dropped():
    image = photo(450)
    picture = pictures(draw_kept([image], [np.arange(64)], (8, 8)), 450)[0]
    assert np.array_equal(picture[:448, :448], np.asarray(image)[:448, :448])
    assert not np.array_equal(picture[448:], np.asarray(image)[448:])


def test_frames_become_a_contact_sheet():
    frames = [photo(224, seed) for seed in range(6)]
    kept = [np.array([seed, 20 + seed]) for seed in range(6)]
    drawn = draw_kept(frames, kept, (8, 8))
    for picture, frame, indices in zip(pictures(drawn, 224, 6), frames, kept, strict=True):
        check(picture, frame, indices, (8, 8))


def test_small_pictures_are_enlarged_by_a_whole_factor():
    drawn = draw_kept([photo(56)], [np.arange(16)], (4, 4))
    assert drawn.width == 448 + 2 * MARGIN
    expected = photo(56).resize((448, 448), Image.Resampling.BICUBIC)
    assert np.array_equal(pictures(drawn, 448)[0], expected)


@pytest.mark.parametrize(
    ("images", "kept", "leading", "line"),
    [
        (1, 86, 0, "86 of 576 tokens kept (15 %)"),
        (1, 87, 1, "87 of 577 tokens kept (15 %)"),
        (8, 22, 0, "176 of 4608 tokens kept (4 %)"),
        (1, 576, 0, "576 of 576 tokens kept (100 %)"),
    ],
)
def test_counts(monkeypatch, images, kept, leading, line):
    written = []
    text = ImageDraw.ImageDraw.text

    def record(self, position, string, *arguments):
        written.append(string)
        text(self, position, string, *arguments)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    draw_kept([photo(336)] * images, [np.arange(kept)] * images, (24, 24), leading, question="Why?", answer="So.")
    labels = [str(number) for number in range(1, 9)] if images > 1 else []
    assert written == [*labels, line, "Why?", "So."]


def test_a_long_question_is_broken_into_lines(monkeypatch):
    question = "What is left of the red ball and right of the blue one? " * 5
    one, other = (draw_kept([photo()], [np.arange(3)], (8, 8), question=text) for text in ("Why?", question))
    assert one.width == other.width
    lines = ImageFont.load_default(18).getlength(question) / 448
    assert other.height - one.height >= 26 * int(lines)


@pytest.mark.parametrize("kept", [[np.array([64])], [np.array([-1])], [], [np.arange(2)] * 2])
def test_indices_that_do_not_fit_are_refused(kept):
    with pytest.raises(ValueError, match="ind"):
        draw_kept([photo()], kept, (8, 8))


def test_bare_pictures_have_no_paper_and_no_counts() -> None:
    images = [Image.new("RGB", (448, 448), colour) for colour in ("red", "green")]
    kept = [np.array([0]), np.array([1])]
    one = draw_kept(images[:1], kept[:1], (2, 2), question="Why?", bare=True)
    assert one.size == (448, 448) and one.mode == "RGBA" and one.getpixel((10, 10)) == (255, 0, 0, 255)
    both = draw_kept(images, kept, (2, 2), bare=True)
    assert both.width == 2 * 448 + 8 and both.getpixel((450, 10)) == (0, 0, 0, 0)  # between them
    framed = draw_kept(images[:1], kept[:1], (2, 2))
    assert framed.mode == "RGB" and framed.size > one.size
