"""Questions about scenes and clips, with the one right answer, computed from the things in them.

Each function of `IMAGE_KINDS` and `CLIP_KINDS` asks one kind of question: it returns (question, answer), or
None when this scene allows no unambiguous question of the kind. Yes/no and two-way questions are asked only
where both answers could be had, and a coin decides which, so that the wording alone never tells.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from numpy.random import Generator

from .clips import Clip, Event
from .scenes import COLOURS, DIGITS, SEEN_PAIRS, SHAPES, SIDE, Scene, Thing

MARGIN = 16  # pixels by which "left of", "above", … must be true, and by which nothing else may come near it

Asked = tuple[str, str] | None
T = TypeVar("T")
PLURAL = {shape: ("crosses" if shape == "cross" else shape + "s") for shape in SHAPES}


def ask_scene(
    rng: Generator,
    scene: Scene,
    kind: str,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
    focus: Thing | None = None,
) -> Asked:
    """One question of a kind about a scene.

    Args:
        rng: the source of every choice.
        scene: what is asked about.
        kind: a key of IMAGE_KINDS.
        pairs: the (colour, shape) pairs that a question may name without their being there.
        focus: the thing to ask about; None takes any.

    Returns:
        (question, answer), or None when the scene allows none.
    """
    return IMAGE_KINDS[kind](rng, scene.things, pairs, focus)


def ask_clip(rng: Generator, clip: Clip, kind: str, focus: Thing | None = None) -> Asked:
    """One question of a kind (a key of CLIP_KINDS) about a clip, or None.

    `focus`: the thing, as it is before, of the event to ask about.
    """
    return CLIP_KINDS[kind](rng, clip, focus)


def describe(scene: Scene) -> tuple[str, str]:
    """All things from left to right. Used in training only: long answers, every thing in them."""
    names = [
        thing.name + (f" with {thing.glyph}" if thing.glyph else "")
        for thing in sorted(scene.things, key=lambda t: t.x)
    ]
    return "Describe the picture.", ", ".join(names)


# ---- how a thing is named


def references(thing: Thing, things: Sequence[Thing], hide: str = "") -> list[str]:
    """Phrases that mean `thing` alone among `things`; `hide` is the attribute they may not give away."""
    others = [other for other in things if other is not thing]
    phrases = []
    if hide != "shape" and all(o.shape != thing.shape for o in others):
        phrases.append(f"the {thing.shape}")
    if hide != "colour" and all(o.colour != thing.colour for o in others):
        phrases.append(f"the {thing.colour} object")
    if not hide and all(o.name != thing.name for o in others):
        phrases.append(f"the {thing.name}")
    if hide and thing.glyph and all(o.glyph != thing.glyph for o in others):
        noun = "number" if thing.glyph in DIGITS else "letter"
        phrases.append(f"the object with the {noun} {thing.glyph}")
    return phrases


def _pick(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _any(
    rng: Generator,
    things: Sequence[Thing],
    focus: Thing | None,
    hide: str = "",
    among: Sequence[Thing] | None = None,
) -> tuple[Thing, str] | None:
    """A thing and a phrase for it: `focus` if given, else any of `among` (default: all)."""
    candidates = [focus] if focus is not None else list(things if among is None else among)
    for i in rng.permutation(len(candidates)):
        phrases = references(candidates[i], things, hide)
        if phrases:
            return candidates[i], _pick(rng, phrases)
    return None


# ---- kinds of questions about a picture


def _colour(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    found = _any(rng, things, focus, hide="colour")
    if found is None:
        return None
    thing, phrase = found
    forms = (f"What colour is {phrase}?", f"What color is {phrase}?", f"Which colour does {phrase} have?")
    return _pick(rng, forms), thing.colour


def _shape(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    found = _any(rng, things, focus, hide="shape")
    if found is None:
        return None
    thing, phrase = found
    return _pick(rng, (f"What shape is {phrase}?", f"Which shape does {phrase} have?")), thing.shape


def _count(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    if focus is None and rng.random() < 0.2:
        return _pick(rng, ("How many objects are there?", "How many objects can you see?")), str(len(things))
    by_shape = rng.random() < 0.5
    have = [thing.shape if by_shape else thing.colour for thing in things]
    if focus is not None:
        value = focus.shape if by_shape else focus.colour
    elif rng.random() < 0.15:  # something that is not there
        value = _pick(rng, [v for v in (SHAPES if by_shape else COLOURS) if v not in have])
    else:  # as many twos and threes as ones, where the scene has them
        number = _pick(rng, sorted({have.count(v) for v in have}))
        value = _pick(rng, [v for v in dict.fromkeys(have) if have.count(v) == number])
    noun = PLURAL[value] if by_shape else f"{value} objects"
    forms = (f"How many {noun} are there?", f"How many {noun} can you see?")
    return _pick(rng, forms), str(have.count(value))


def _exists(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    yes = rng.random() < 0.5
    have = {(thing.colour, thing.shape) for thing in things}
    if yes:
        colour, shape = (focus.colour, focus.shape) if focus is not None else _pick(rng, sorted(have))
    else:  # mostly a colour and a shape that are both there, but not together
        absent = [pair for pair in pairs if pair not in have]
        colours, shapes = {c for c, _ in have}, {s for _, s in have}
        near = [(c, s) for c, s in absent if c in colours and s in shapes]
        colour, shape = _pick(rng, near if near and rng.random() < 0.6 else absent)
    article = "an" if colour == "orange" else "a"
    forms = (f"Is there {article} {colour} {shape}?", f"Can you see {article} {colour} {shape}?")
    return _pick(rng, forms), "yes" if yes else "no"


def _glyph(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    printed = [thing for thing in things if thing.glyph and (focus is None or thing is focus)]
    found = _any(rng, things, None, among=printed)
    if found is None:
        return None
    thing, phrase = found
    noun = "number" if thing.glyph in DIGITS else "letter"
    forms = (f"Which {noun} is on {phrase}?", f"What {noun} is printed on {phrase}?")
    return _pick(rng, forms), thing.glyph


_SIDES = {  # how far b lies on that side of a, in pixels
    "left of": lambda a, b: a.x - b.x,
    "right of": lambda a, b: b.x - a.x,
    "above": lambda a, b: a.y - b.y,
    "below": lambda a, b: b.y - a.y,
}


def _beside(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    """What is left of …: only when exactly one thing is, by MARGIN, and no other is nearly."""
    possible = []
    for anchor in things:
        for side, ahead in _SIDES.items():
            gaps = [(ahead(anchor, other), other) for other in things if other is not anchor]
            beside = [other for gap, other in gaps if gap > -MARGIN]
            if len(beside) == 1 and max(gap for gap, _ in gaps) >= MARGIN and (focus in (None, anchor, beside[0])):
                possible += [(phrase, side, beside[0]) for phrase in references(anchor, things)]
    if not possible:
        return None
    phrase, side, thing = _pick(rng, possible)
    return _pick(rng, (f"What is {side} {phrase}?", f"Which object is {side} {phrase}?")), thing.name


def _compare(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    return _pick(rng, (_bigger, _same_colour, _is_beside))(rng, things, focus)


def _bigger(rng: Generator, things: Sequence[Thing], focus: Thing | None) -> Asked:
    """Which is bigger, of two shapes that each occur once."""
    single = [thing for thing in things if references(thing, things, hide="colour")[:1] == [f"the {thing.shape}"]]
    bigs, smalls = [t for t in single if t.big], [t for t in single if not t.big]
    options = [(a, b) for a in bigs for b in smalls if focus is None or focus in (a, b)]
    if not options:
        return None
    big, small = _pick(rng, options)
    one, two = (big, small) if rng.random() < 0.5 else (small, big)
    word = _pick(rng, ("bigger", "smaller"))
    answer = big if word == "bigger" else small
    return f"Which is {word}, the {one.shape} or the {two.shape}?", answer.shape


def _same_colour(rng: Generator, things: Sequence[Thing], focus: Thing | None) -> Asked:
    single = [thing for thing in things if all(o.shape != thing.shape for o in things if o is not thing)]
    twos = [(a, b) for a in single for b in single if a is not b and (focus is None or focus in (a, b))]
    same = [(a, b) for a, b in twos if a.colour == b.colour]
    other = [(a, b) for a, b in twos if a.colour != b.colour]
    if not same or not other:
        return None
    yes = rng.random() < 0.5
    a, b = _pick(rng, same if yes else other)
    return f"Are the {a.shape} and the {b.shape} the same colour?", "yes" if yes else "no"


def _is_beside(rng: Generator, things: Sequence[Thing], focus: Thing | None) -> Asked:
    found = _any(rng, things, focus)
    if found is None:
        return None
    thing, phrase = found
    other = _any(rng, things, None, among=[o for o in things if o is not thing])
    if other is None:
        return None
    yes = rng.random() < 0.5
    sides = [side for side, ahead in _SIDES.items() if (ahead if yes else _flip(ahead))(other[0], thing) >= MARGIN]
    if not sides:
        return None
    return f"Is {phrase} {_pick(rng, sides)} {other[1]}?", "yes" if yes else "no"


def _flip(ahead: Callable[[Thing, Thing], int]) -> Callable[[Thing, Thing], int]:
    return lambda a, b: -ahead(a, b)


def _place(rng: Generator, things: Sequence[Thing], pairs: Sequence[tuple[str, str]], focus: Thing | None) -> Asked:
    middle = SIDE // 2
    found = _any(rng, things, focus)
    if found is None:
        return None
    thing, phrase = found
    across = rng.random() < 0.5
    offset = (thing.x if across else thing.y) - middle
    if abs(offset) < MARGIN:
        return None
    if across:
        return f"Is {phrase} on the left or on the right?", "left" if offset < 0 else "right"
    return f"Is {phrase} at the top or at the bottom?", "top" if offset < 0 else "bottom"


IMAGE_KINDS: dict[str, Callable[[Generator, Sequence[Thing], Sequence[tuple[str, str]], Thing | None], Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "glyph": _glyph,
    "beside": _beside,
    "compare": _compare,
    "place": _place,
}


# ---- kinds of questions about a clip


def _everything(clip: Clip) -> list[Thing]:
    """Every thing in every look it ever has; a thing that moves counts once."""
    looks = list(clip.still)
    for event in clip.events:
        looks.append(event.before)
        if event.kind == "recolour":
            looks.append(event.after)
    return looks


def _event(clip: Clip, kinds: Sequence[str], focus: Thing | None) -> Event | None:
    return next((e for e in clip.events if e.kind in kinds and (focus is None or e.before is focus)), None)


def _direction(rng: Generator, clip: Clip, focus: Thing | None) -> Asked:
    event = _event(clip, ("move",), focus)
    found = event and _any(rng, _everything(clip), event.before)
    if not event or not found:
        return None
    return _pick(rng, (f"Which way does {found[1]} move?", f"Where does {found[1]} go?")), event.direction


_HAPPENS = {
    "move": ("What moves?", "Which object moves?"),
    "appear": ("What appears?", "Which object appears?"),
    "disappear": ("What disappears?", "Which object disappears?"),
}


def _what(rng: Generator, clip: Clip, focus: Thing | None) -> Asked:
    """What moves, appears or disappears: each kind of event happens at most once in a clip."""
    events = [e for e in clip.events if e.kind in _HAPPENS and (focus is None or e.before is focus)]
    if not events:
        return None
    event = _pick(rng, events)
    return _pick(rng, _HAPPENS[event.kind]), event.before.name


def _recolour(rng: Generator, clip: Clip, focus: Thing | None) -> Asked:
    """Which shape changes colour, from what, to what."""
    event = _event(clip, ("recolour",), focus)
    if event is None:
        return None
    others = [thing for thing in _everything(clip) if thing not in (event.before, event.after)]
    form = int(rng.integers(3))
    if form == 0:
        return _pick(rng, ("What changes colour?", "Which shape changes colour?")), event.before.shape
    if any(other.shape == event.before.shape for other in others):
        return None
    if form == 1:
        return f"What colour is the {event.before.shape} at the start?", event.before.colour
    forms = (
        f"What colour does the {event.before.shape} become?",
        f"What colour is the {event.before.shape} at the end?",
    )
    return _pick(rng, forms), event.after.colour


_VERBS = {"move": "move", "appear": "appear", "disappear": "disappear", "recolour": "change colour"}


def _happens(rng: Generator, clip: Clip, focus: Thing | None) -> Asked:
    """Does … move, appear, …: only where another thing could be asked about with the other answer."""
    events = [e for e in clip.events if focus is None or e.before is focus]
    if not events:
        return None
    event = _pick(rng, events)
    things = [*clip.still, *(e.before for e in clip.events)]
    # A colour cannot name a thing whose colour changes.
    looks, hide = (things, "colour") if event.kind == "recolour" else (_everything(clip), "")
    subject = _any(rng, looks, event.before, hide)
    other = _any(rng, looks, None, hide, among=[thing for thing in things if thing is not event.before])
    if subject is None or other is None:
        return None
    yes = rng.random() < 0.5
    return f"Does {(subject if yes else other)[1]} {_VERBS[event.kind]}?", "yes" if yes else "no"


def _number(rng: Generator, clip: Clip, focus: Thing | None) -> Asked:
    when, time = _pick(rng, (("at the start", 0.0), ("at the end", 1.0)))
    return f"How many objects are there {when}?", str(len(clip.things(time)))


CLIP_KINDS: dict[str, Callable[[Generator, Clip, Thing | None], Asked]] = {
    "direction": _direction,
    "what": _what,
    "recolour": _recolour,
    "happens": _happens,
    "number": _number,
}
