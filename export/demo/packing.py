"""Training data: chunks of pictures and clips, what each patch shows, and questions packed in rows of tokens.

The visual tokens of a picture are the costly part of a sequence, so a row holds as many questions as fit
behind one picture; the attention mask (`packed_answers.py`) hides the questions from each other. Every chunk depends
on the seed and its number alone, whoever draws it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from ...calibration.tasks.clips import FILE_FRAMES, FRAMES, Clip, draw_clip, frame_numbers, sample_clip
from ...calibration.tasks.drawn_task import generator
from ...calibration.tasks.questions import CLIP_KINDS, IMAGE_KINDS, ask_clip, ask_scene, describe
from ...calibration.tasks.scenes import (
    BIG,
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    SIDE,
    Scene,
    Thing,
    draw,
    sample_scene,
)
from .model import EOS, PATCH, TOKENS, tokenizer

ROW = 128  # tokens of questions and answers behind one picture or clip
ROWS = 4  # rows of other questions drawn for each picture: it is trained on that many times
KINDS = (*IMAGE_KINDS, "describe", *CLIP_KINDS)
NOTHING = -100  # target of tokens that are not answered for

QuestionAnswer = tuple[str, str, str]  # question, answer, kind
Chunk = dict[str, np.ndarray]


@lru_cache(maxsize=100_000)
def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


def pack(asked: Sequence[QuestionAnswer], rng: Generator) -> np.ndarray:
    """As many of the questions as fit, one after another: int16 [6, ROW].

    The six lines: token; block (which question, −1 where empty); position in the block; target (the next
    token where that belongs to the answer, else NOTHING); kind (index into KINDS, −1 where empty); and 1 on
    the prompt of one question drawn by `rng`, the one the visual tokens are selected for in the pruned stage.
    """
    row = np.zeros((6, ROW), np.int16)
    row[1], row[3], row[4] = -1, NOTHING, -1
    start = 0
    prompts: list[slice] = []
    for question, answer, kind in asked:
        prompt = encode(f"\n{question} ASSISTANT:")
        ids = (*prompt, *encode(f" {answer}"), EOS)
        end = start + len(ids) - 1  # </s> is a target, never an input
        if end > ROW:
            continue
        row[0, start:end] = ids[:-1]
        row[1, start:end] = len(prompts)
        row[2, start:end] = np.arange(end - start)
        row[3, start + len(prompt) - 1 : end] = ids[len(prompt) :]
        row[4, start:end] = KINDS.index(kind)
        prompts.append(slice(start, start + len(prompt)))
        start = end
    row[5, prompts[int(rng.integers(len(prompts)))]] = 1
    return row


# What a patch shows, as classes (0: no object, or no glyph on it), for the training of the tower.
PATCH_CLASSES = {
    "colour": 1 + len(COLOURS),
    "shape": 1 + len(SHAPES),
    "size": 3,
    "glyph": 1 + len(DIGITS + LETTERS),
}


def patch_labels(things: Sequence[Thing]) -> np.ndarray:
    """What each patch shows: int16 [6, P], the classes of PATCH_CLASSES, then x and y of the object's centre.

    A patch shows an object when its middle lies within the object's circle, 4 pixels wider.
    """
    labels = np.zeros((6, TOKENS), np.int16)
    middle = np.arange(PATCH // 2, SIDE, PATCH)
    for thing in things:
        reach = thing.size / 2 + 4
        inside = ((middle[None, :] - thing.x) ** 2 + (middle[:, None] - thing.y) ** 2 <= reach**2).ravel()
        labels[:, inside] = np.array(
            [
                1 + list(COLOURS).index(thing.colour),
                1 + SHAPES.index(thing.shape),
                2 if thing.size >= BIG[0] else 1,
                1 + (DIGITS + LETTERS).index(thing.glyph) if thing.glyph else 0,
                thing.x,
                thing.y,
            ]
        )[:, None]
    return labels


HARD_KINDS = ("count", "beside", "compare", "place")  # asked about more often


FOCUS = 4  # times that a kind is tried beyond the others for each time it is named in focus


def image_row(rng: Generator, scene: Scene, with_description: bool, focus: Sequence[str] = ()) -> np.ndarray:
    """One packed row about a scene, int16 [6, ROW]; kinds in `focus` are asked about more often."""
    asked: list[QuestionAnswer] = [(*describe(scene), "describe")] if with_description else []
    extra = [kind for kind in focus if kind in IMAGE_KINDS] * FOCUS
    for kind in rng.permutation([*IMAGE_KINDS, *IMAGE_KINDS, *HARD_KINDS, *HARD_KINDS, *extra]).tolist():
        found = ask_scene(rng, scene, kind)
        if found is not None and (*found, kind) not in asked:
            asked.append((*found, kind))
    return pack(asked, rng)


def clip_row(rng: Generator, clip: Clip, focus: Sequence[str] = ()) -> np.ndarray:
    """One packed row about a clip, int16 [6, ROW], likewise; it seldom fills up, so many are tried."""
    asked: list[QuestionAnswer] = []
    extra = [kind for kind in focus if kind in CLIP_KINDS] * FOCUS
    for kind in rng.permutation([*[*CLIP_KINDS] * 5, *extra]).tolist():
        found = ask_clip(rng, clip, kind)
        if found is not None and (*found, kind) not in asked:
            asked.append((*found, kind))
    return pack(asked, rng)


def objects_at(number: int, easy: int) -> int:
    """The curriculum: most objects of a picture in chunk `number`: 2, 3, 4, and 6 from chunk `easy` on."""
    return 6 if number >= easy else 2 + 3 * number // easy


def chunk(
    number: int,
    seed: int,
    images: int,
    clips: int,
    split: str = "train",
    easy: int = 0,
    draw_pictures: bool = True,
    focus: Sequence[str] = (),
) -> Chunk:
    """Chunk `number` of a split.

    Args:
        number: pictures `number · images …` and clips `number · clips …` of the split.
        seed: of the task.
        images, clips: how many.
        split: "train" or "val".
        easy: length of the curriculum in chunks.
        draw_pictures: False leaves the pixels out, for text-only training.
        focus: kinds of questions to ask more often, once more for each time that they are named.

    Returns:
        images uint8 [N, H, W, 3], image_labels int16 [N, 6, P], image_rows int16 [N, ROWS, 6, ROW], and for
        clips likewise, with the frames [M, F, …].
    """
    out: dict[str, list[np.ndarray]] = {
        f"{medium}{part}": [] for medium in ("image", "clip") for part in ("s", "_labels", "_rows")
    }
    for i in range(images):
        rng = generator(split, seed, number * images + i, 0)
        scene = sample_scene(rng, objects_at(number, easy))
        out["image_rows"].append(np.stack([image_row(rng, scene, r % 2 == 0, focus) for r in range(ROWS)]))
        if draw_pictures:
            out["images"].append(draw(scene))
            out["image_labels"].append(patch_labels(scene.things))
    for i in range(clips):
        rng = generator(split, seed, number * clips + i, 1)
        clip = sample_clip(rng)
        out["clip_rows"].append(np.stack([clip_row(rng, clip, focus) for _ in range(ROWS)]))
        if draw_pictures:
            out["clips"].append(draw_clip(clip))
            times = frame_numbers(FRAMES) / (FILE_FRAMES - 1)
            out["clip_labels"].append(np.stack([patch_labels(clip.things(t)) for t in times.tolist()]))
    return {name: np.stack(arrays) for name, arrays in out.items() if arrays}


class Chunks:
    """Chunks first … last−1 as a map-style dataset: drawn by worker processes, in a fixed order."""

    def __init__(self, first: int, last: int, **settings) -> None:
        self.first, self.last, self.settings = first, last, settings

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Chunk:
        if index >= len(self):
            raise IndexError(index)
        return chunk(self.first + index, **self.settings)
