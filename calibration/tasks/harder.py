"""What the demo checkpoint was not trained on: crowded pictures, and the place of an object in words of a grid.

In a crowd tokens are scarce and the question decides which of them matter: there the relevance of a rule can show what it
is worth. The place in a grid needs positions: nothing else tells where a kept token stood.
"""

from numpy.random import Generator

from .questions import Asked, references
from .scenes import (
    COLOURS,
    DIGITS,
    LETTERS,
    PRINTABLE_SHAPES,
    SEEN_PAIRS,
    SIDE,
    Scene,
    Thing,
    free_place,
    sample_background,
)

CROWD = (12, 30)  # objects, inclusive
CROWD_SIZES = (22, 30)  # diameters in pixels: two patches of 16 across, and smaller than any the checkpoint was shown
CROWD_KINDS = ("colour", "shape", "glyph", "exists", "place")
_ROWS, _COLUMNS = ("A", "B", "C"), ("1", "2", "3")
_CLEAR = 8  # pixels that an object's centre must be away from the lines of the grid


def sample_crowd(rng: Generator) -> Scene:
    """A picture with 12 to 30 small objects, half of those that can have a glyph with one: each glyph once.

    The others are distractors: they share colours, shapes and glyphs' kind with the one that is asked about.
    """
    glyphs = [*DIGITS, *LETTERS]
    rng.shuffle(glyphs)
    things: list[Thing] = []
    wanted = int(rng.integers(*CROWD, endpoint=True))
    for _ in range(20 * wanted):
        if len(things) == wanted:
            break
        colour, shape = SEEN_PAIRS[int(rng.integers(len(SEEN_PAIRS)))]
        size = int(rng.integers(*CROWD_SIZES, endpoint=True))
        place = free_place(rng, size, things)
        if place is not None:
            printed = shape in PRINTABLE_SHAPES and bool(glyphs) and rng.random() < 0.5
            things.append(Thing(shape, colour, size, *place, glyphs.pop() if printed else "", 0, COLOURS[colour]))
    return Scene(tuple(things), sample_background(rng))


def ask_cell(rng: Generator, scene: Scene, kind: str = "cell") -> Asked:
    """In which of nine cells an object is: "B2" is the middle one. None where no object is well within a cell.

    Only objects whose centre is clear of the grid's lines are asked about.
    """
    found = []
    for thing in scene.things:
        phrases = references(thing, scene.things)
        if phrases and all(abs(at - line) >= _CLEAR for at in (thing.x, thing.y) for line in (SIDE / 3, 2 * SIDE / 3)):
            found.append((thing, phrases))
    if not found:
        return None
    thing, phrases = found[int(rng.integers(len(found)))]
    phrase = phrases[int(rng.integers(len(phrases)))]
    cell = _ROWS[3 * thing.y // SIDE] + _COLUMNS[3 * thing.x // SIDE]
    return f"In which cell is {phrase}, rows A to C from the top, columns 1 to 3 from the left?", cell
