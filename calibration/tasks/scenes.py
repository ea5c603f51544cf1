"""Pictures of the task: a few objects on a muted background, drawn with Pillow from a seeded generator.

A scene is a list of `Thing`s and a background array; `draw` renders it. Everything a question can ask is in
the `Thing`s, so every answer can be recomputed from them. The background is always of low saturation and
middle brightness, the objects' colours are far apart: no colour word is ever a matter of taste.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

SIDE = 224  # pixels, width and height of every picture

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring")
COLOURS = {
    "red": (214, 30, 40),
    "orange": (250, 140, 10),
    "yellow": (248, 226, 50),
    "green": (30, 158, 62),
    "blue": (38, 84, 224),
    "purple": (148, 48, 190),
    "white": (246, 246, 246),
    "black": (22, 22, 24),
}
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
# One pair for each colour and each shape, never drawn nor asked about in training.
UNSEEN_PAIRS = (
    ("red", "ring"),
    ("orange", "circle"),
    ("yellow", "cross"),
    ("green", "heart"),
    ("blue", "star"),
    ("purple", "square"),
    ("white", "triangle"),
    ("black", "diamond"),
)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in UNSEEN_PAIRS)

DIGITS = "0123456789"
LETTERS = "ABEFHKMPRTXZ"  # none that reads like a digit or like another letter of the list
PRINTABLE_SHAPES = ("circle", "square", "heart", "diamond")  # solid enough to print a glyph on

SMALL = (32, 37)  # diameters in pixels, inclusive; 2-3 patches of 16 pixels across
BIG = (50, 58)
_GAP = 6  # pixels kept free between two objects
_DARK_GLYPH = {"yellow", "orange", "white"}  # colours that carry a dark glyph


@dataclass(frozen=True)
class Thing:
    """One object: what it is and where. `x`, `y` are the centre and `size` the diameter, in pixels."""

    shape: str
    colour: str
    size: int
    x: int
    y: int
    glyph: str = ""  # one digit or letter printed on it
    angle: int = 0  # degrees, small
    rgb: tuple[int, int, int] = (0, 0, 0)  # the colour as drawn, a little off the named one

    @property
    def big(self) -> bool:
        return self.size >= BIG[0]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things on a background: uint8 [SIDE, SIDE, 3]."""

    things: tuple[Thing, ...]
    background: np.ndarray = field(repr=False)


def sample_scene(rng: Generator, most: int = 6, pairs: Sequence[tuple[str, str]] = SEEN_PAIRS) -> Scene:
    """A random scene of 2 to `most` things whose (colour, shape) come from `pairs`."""
    return Scene(tuple(sample_things(rng, int(rng.integers(2, most + 1)), pairs)), sample_background(rng))


def sample_things(
    rng: Generator,
    count: int,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
    first: tuple[str, str] | None = None,
) -> list[Thing]:
    """At most `count` non-overlapping things, the first one of the (colour, shape) `first` if given.

    In half of the draws a shape or a colour is repeated two to four times, so that counting means something.
    """
    kinds = [pairs[i] for i in rng.integers(len(pairs), size=count)]
    if first is not None:
        kinds[0] = first
    if rng.random() < 0.5:  # repeat one thing's shape or colour
        axis = int(rng.integers(2))
        value = kinds[0][axis]
        alike = [pair for pair in pairs if pair[axis] == value]
        for i in range(1, min(count, int(rng.integers(2, 5)))):
            kinds[i] = alike[int(rng.integers(len(alike)))]
    things: list[Thing] = []
    for colour, shape in kinds:
        size = int(rng.integers(*(BIG if rng.random() < 0.5 else SMALL), endpoint=True))
        place = free_place(rng, size, things)
        if place is not None:
            things.append(sample_thing(rng, colour, shape, size, *place))
    return things


def sample_thing(rng: Generator, colour: str, shape: str, size: int, x: int, y: int) -> Thing:
    """A thing with random glyph, tilt and colour jitter."""
    glyph = ""
    if shape in PRINTABLE_SHAPES and size >= BIG[0] and rng.random() < 0.8:
        alphabet = DIGITS if rng.random() < 0.5 else LETTERS
        glyph = alphabet[int(rng.integers(len(alphabet)))]
    angle = 0 if glyph else int(rng.integers(-2, 3)) * 5
    red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.integers(-10, 11, size=3), 0, 255).tolist()
    return Thing(shape, colour, size, x, y, glyph, angle, (red, green, blue))


def free_place(
    rng: Generator, size: int, others: Sequence[Thing], blocked: Sequence[tuple[int, int, int]] = ()
) -> tuple[int, int] | None:
    """A centre for a thing of `size` pixels, clear of `others` and of the discs `blocked` (x, y, diameter).

    None when 40 draws found no room.
    """
    reach = size // 2 + 3
    taken = [(o.x, o.y, o.size) for o in others] + list(blocked)
    for x, y in rng.integers(reach, SIDE - reach, size=(40, 2)).tolist():
        if all((x - a) ** 2 + (y - b) ** 2 >= ((size + d) / 2 + _GAP) ** 2 for a, b, d in taken):
            return x, y
    return None


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 [SIDE, SIDE, 3]."""
    return draw_things(scene.background, scene.things)


def draw_things(background: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
    """`things` on a copy of `background`, both uint8 [SIDE, SIDE, 3]."""
    image = Image.fromarray(background)
    for thing in things:
        mask = _shape_mask(thing.shape, thing.size, thing.angle)
        image.paste(thing.rgb, (thing.x - mask.width // 2, thing.y - mask.height // 2), mask)
        if thing.glyph:
            glyph = _glyph_mask(thing.glyph, round(thing.size * (0.5 if thing.shape == "heart" else 0.56)))
            ink = (20, 20, 20) if thing.colour in _DARK_GLYPH else (250, 250, 250)
            lift = thing.size // 20 if thing.shape == "heart" else 0
            image.paste(ink, (thing.x - glyph.width // 2, thing.y - glyph.height // 2 - lift), glyph)
    return np.asarray(image)


@lru_cache(maxsize=4096)
def _shape_mask(shape: str, size: int, angle: int) -> Image.Image:
    """Antialiased mask of a shape, drawn four times larger and reduced."""
    scale = 4
    side = size * scale
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif shape == "ring":
        width = side * 0.24
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        pen.ellipse((width, width, side - 1 - width, side - 1 - width), fill=0)
    else:
        points = (_outline(shape) * (side - 1)).tolist()
        pen.polygon([(x, y) for x, y in points], fill=255)
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BICUBIC)
    return mask.reduce(scale)


@lru_cache(maxsize=32)
def _outline(shape: str) -> np.ndarray:
    """Corner points [N, 2] of a shape in the unit square."""
    if shape == "square":
        points = [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)]
    elif shape == "diamond":
        points = [(0.5, 0.0), (0.92, 0.5), (0.5, 1.0), (0.08, 0.5)]
    elif shape == "triangle":
        points = [(0.5, 0.04), (0.98, 0.9), (0.02, 0.9)]
    elif shape == "cross":
        a, b = 0.34, 0.66
        points = [
            (a, 0),
            (b, 0),
            (b, a),
            (1, a),
            (1, b),
            (b, b),
            (b, 1),
            (a, 1),
            (a, b),
            (0, b),
            (0, a),
            (a, a),
        ]
    elif shape == "star":
        turn = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.21, 0.5)
        return np.stack([0.5 + radius * np.sin(turn), 0.52 - radius * np.cos(turn)], axis=1)
    else:  # heart
        turn = np.linspace(0, 2 * np.pi, 60)
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([0.5 + x / 34, 0.46 - y / 34], axis=1)
    return np.array(points)


@lru_cache(maxsize=1024)
def _glyph_mask(glyph: str, height: int) -> Image.Image:
    """Mask of one character, tightly cropped, from Pillow's built-in font."""
    mask = Image.new("L", (3 * height, 3 * height))
    font = ImageFont.load_default(round(height * 1.3))
    ImageDraw.Draw(mask).text((height, height), glyph, fill=255, font=font, stroke_width=1)
    return mask.crop(mask.getbbox())


def sample_background(rng: Generator) -> np.ndarray:
    """A muted background, uint8 [SIDE, SIDE, 3]: a gradient, a texture, a pattern, or out-of-focus blobs."""
    kind = int(rng.integers(4))
    blend = (_gradient, _texture, _pattern, _blobs)[kind](rng)  # [SIDE, SIDE] in [0, 1]
    low, high = _muted(rng), _muted(rng)
    picture = low + blend[..., None] * (high - low)  # [SIDE, SIDE, 3]
    grain = rng.integers(-128, 128, size=(SIDE, SIDE), dtype=np.int8).astype(np.float32)
    picture += grain[..., None] * np.float32(rng.uniform(0.01, 0.07))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _muted(rng: Generator) -> np.ndarray:
    """A grey of 75 to 180 with a cast of at most 28 in each channel: far from every object colour."""
    return (rng.uniform(75, 180) + rng.uniform(-28, 28, size=3)).astype(np.float32)


def _gradient(rng: Generator) -> np.ndarray:
    turn = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    return np.clip(0.5 + 0.7 * (np.float32(np.cos(turn)) * ramp + np.float32(np.sin(turn)) * ramp[:, None]), 0, 1)


def _texture(rng: Generator) -> np.ndarray:
    """Value noise of three octaves."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for cells, weight in ((4, 0.5), (11, 0.3), (37, 0.2)):
        total += weight * _enlarge(rng.random((cells, cells), dtype=np.float32))
    return np.clip(total, 0, 1)


def _pattern(rng: Generator) -> np.ndarray:
    """Stripes, or two crossed sets of them, of random direction and width."""
    ramp = np.arange(SIDE, dtype=np.float32)
    total = np.zeros((SIDE, SIDE), np.float32)
    waves = int(rng.integers(1, 3))
    for _ in range(waves):
        turn, pitch = rng.uniform(0, np.pi), rng.uniform(12, 60)
        phase = (np.float32(np.cos(turn)) * ramp + np.float32(np.sin(turn)) * ramp[:, None]) * np.float32(
            2 * np.pi / pitch
        )
        total += np.sin(phase)
    return 0.5 + 0.5 * total / waves


def _blobs(rng: Generator) -> np.ndarray:
    """What an out-of-focus photo looks like: overlapping soft discs over a soft gradient."""
    small = Image.fromarray((_gradient(rng)[::8, ::8] * 255).astype(np.uint8))  # 28 × 28
    pen = ImageDraw.Draw(small)
    for x, y, radius, grey in rng.integers((0, 0, 2, 0), (28, 28, 9, 256), size=(9, 4)).tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)
    return np.clip(_enlarge(np.asarray(small, dtype=np.float32) / 255), 0, 1)


def _enlarge(small: np.ndarray) -> np.ndarray:
    """A small float map, smoothly resized to [SIDE, SIDE]."""
    return np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
