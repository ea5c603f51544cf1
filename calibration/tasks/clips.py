"""Clips of the task: a scene in which one or two objects move, appear, disappear or change colour.

Time runs from 0 to 1. Events happen strictly inside, so the first and the last frame show before and after,
whatever the number of frames. A clip renders at any time; `dataset.py` writes it as a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator

from .scenes import (
    BIG,
    COLOURS,
    SEEN_PAIRS,
    SIDE,
    SMALL,
    Thing,
    draw_things,
    free_place,
    sample_background,
    sample_thing,
)

EVENTS = ("move", "appear", "disappear", "recolour")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FRAMES = 8  # frames a model sees of a clip
FILE_FRAMES = 24  # frames in a clip's file
RATE = 8  # frames a second in a clip's file


@dataclass(frozen=True)
class Event:
    """What happens to one thing between the times `begin` and `end`; `direction` only for a move."""

    kind: str
    before: Thing
    after: Thing
    begin: float
    end: float
    direction: str = ""

    def at(self, time: float) -> Thing | None:
        """The thing at a time, None while it is not there."""
        if self.kind == "move":
            share = min(1.0, max(0.0, (time - self.begin) / (self.end - self.begin)))
            x = round(self.before.x + share * (self.after.x - self.before.x))
            y = round(self.before.y + share * (self.after.y - self.before.y))
            return replace(self.before, x=x, y=y)
        if time < self.begin:
            return None if self.kind == "appear" else self.before
        return None if self.kind == "disappear" else self.after


@dataclass(frozen=True)
class Clip:
    """Still things, things to which something happens, and a background uint8 [SIDE, SIDE, 3]."""

    still: tuple[Thing, ...]
    events: tuple[Event, ...]
    background: np.ndarray = field(repr=False)

    def things(self, time: float) -> list[Thing]:
        """What is in the picture at a time in [0, 1]."""
        return [*self.still, *(thing for event in self.events if (thing := event.at(time)) is not None)]


def sample_clip(
    rng: Generator,
    most: int = 4,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
    first: tuple[str, str] | None = None,
) -> Clip:
    """A random clip of 2 to `most` things, one or two of which have an event of their own kind.

    `first`, if given, is the (colour, shape) of the thing the first event happens to.
    """
    kinds = [EVENTS[i] for i in rng.permutation(len(EVENTS))[: int(rng.integers(1, 3))]]
    events: list[Event] = []
    blocked: list[tuple[int, int, int]] = []  # discs that things pass through: x, y, diameter
    for kind in kinds:
        colour, shape = first if first is not None and not events else pairs[int(rng.integers(len(pairs)))]
        event = _sample_event(rng, kind, colour, shape, pairs, blocked)
        if event is not None:
            events.append(event)
            blocked += _trail(event)
    still: list[Thing] = []
    for _ in range(int(rng.integers(2, most + 1)) - len(events)):
        colour, shape = pairs[int(rng.integers(len(pairs)))]
        size = _size(rng)
        place = free_place(rng, size, still, blocked)
        if place is not None:
            still.append(sample_thing(rng, colour, shape, size, *place))
    return Clip(tuple(still), tuple(events), sample_background(rng))


def _size(rng: Generator) -> int:
    return int(rng.integers(*(BIG if rng.random() < 0.5 else SMALL), endpoint=True))


def _sample_event(
    rng: Generator,
    kind: str,
    colour: str,
    shape: str,
    pairs: Sequence[tuple[str, str]],
    blocked: Sequence[tuple[int, int, int]],
) -> Event | None:
    """An event that keeps clear of the discs `blocked`, or None when there was no room."""
    size = _size(rng)
    begin = float(rng.uniform(0.25, 0.45))
    if kind != "move":
        place = free_place(rng, size, (), blocked)
        if place is None:
            return None
        before = sample_thing(rng, colour, shape, size, *place)
        after = before
        if kind == "recolour":
            others = [c for c in COLOURS if c != colour and (c, shape) in pairs]
            new = others[int(rng.integers(len(others)))]
            after = replace(before, colour=new, rgb=COLOURS[new])
        begin += float(rng.uniform(0, 0.25))
        return Event(kind, before, after, begin, begin)
    direction = list(DIRECTIONS)[int(rng.integers(4))]
    dx, dy = DIRECTIONS[direction]
    low, high = size // 2 + 3, SIDE - size // 2 - 3
    for _ in range(20):
        x, y = rng.integers(low, high, size=2).tolist()
        distance = int(rng.integers(70, 121))
        there = (x + dx * distance, y + dy * distance)
        if not all(low <= c <= high for c in there):
            continue
        before = sample_thing(rng, colour, shape, size, x, y)
        event = Event(kind, before, replace(before, x=there[0], y=there[1]), begin, begin + 0.35, direction)
        clear = all(
            (a - c) ** 2 + (b - d) ** 2 >= ((size + s) / 2 + 6) ** 2 for a, b, _ in _trail(event) for c, d, s in blocked
        )
        if clear:
            return event
    return None


def _trail(event: Event) -> list[tuple[int, int, int]]:
    """Discs (x, y, diameter) that cover everywhere the event's thing ever is."""
    times = np.linspace(event.begin, event.end, 9) if event.kind == "move" else [event.begin]
    return [(thing.x, thing.y, thing.size) for t in times if (thing := event.at(t) or event.before)]


def frame_numbers(frames: int) -> np.ndarray:
    """Which of the file's frames a model gets: uniform, truncated, as readers of clips do it. int [F]."""
    return np.linspace(0, FILE_FRAMES - 1, frames).astype(int)


def draw_clip(clip: Clip, frames: int = FRAMES) -> np.ndarray:
    """The frames a model gets from the clip's file, before compression: uint8 [F, SIDE, SIDE, 3]."""
    times = frame_numbers(frames) / (FILE_FRAMES - 1)
    return np.stack([draw_things(clip.background, clip.things(t)) for t in times.tolist()])
