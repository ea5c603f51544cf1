"""An image's or video's tokens as data, and the splice into the prompt; `prompt_encoder` decides what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backends.arrays import Array, concatenate, take
from .bundle import ModalitySpec
from .errors import RedipruneError

NEWLINE = -1  # in a layout: the newline embedding


@dataclass(frozen=True)
class Inserted:
    """What stands in place of a placeholder.

    Attributes:
        placeholder: its token id.
        tokens: [N, D], the visual embeddings.
        places: [N] int64, where each stands among all that there would be without pruning.
        total: how many there would be.
    """

    placeholder: int
    tokens: Array
    places: np.ndarray
    total: int


@dataclass(frozen=True)
class Visual:
    """An image or a video of a request.

    Attributes:
        frames: the picture, or the sampled frames.
        spec: how its kind becomes tokens.
        features: [F, P, C], F frames or tiles.
        layout: for tiles, the slots [N] of the token sequence: tile · P + patch, or `NEWLINE`.
        kept: [F, K] int64, ascending per frame; all of P while nothing is pruned.
        encoded: frames or tiles that went through the tower for this request.
        parts: placeholders in the prompt that stand for it, each for as many frames.
    """

    kind: str
    frames: list[Image.Image]
    spec: ModalitySpec
    features: Array
    layout: np.ndarray | None
    kept: np.ndarray
    encoded: int = 0
    parts: int = 1

    @property
    def total(self) -> int:
        """Visual tokens without pruning, newlines included."""
        return self.features.shape[0] * self.features.shape[1] if self.layout is None else len(self.layout)

    def places(self) -> np.ndarray:
        """Where the kept tokens, and newlines, stand among all of them: [N] int64 ascending, in 0 … total − 1."""
        frames, patches, _ = self.features.shape
        flat = (self.kept + np.arange(frames)[:, None] * patches).ravel()
        if self.layout is None:
            return flat
        return np.flatnonzero((self.layout == NEWLINE) | np.isin(self.layout, flat))

    def inserted(self, tokens: Array) -> list[Inserted]:
        """What stands in place of each of its placeholders, given all its kept tokens [N, D]."""
        places, size, total = self.places(), tokens.shape[0] // self.parts, self.total // self.parts
        return [
            Inserted(
                self.spec.placeholder,
                tokens[at * size : (at + 1) * size],
                places[at * size : (at + 1) * size] - at * total,
                total,
            )
            for at in range(self.parts)
        ]

    def sequence(self, projected: Array, newline: np.ndarray | None) -> Array:
        """The kept tokens in the order the decoder reads them: [N, D] from projected [F, K, D].

        Of a layout the dropped patches are left out; newlines stay.
        """
        frames, count, width = projected.shape
        flat = projected.reshape(frames * count, width)
        if self.layout is None:
            return flat
        assert newline is not None
        patches = self.features.shape[1]
        row = np.full(frames * patches + 1, NEWLINE, np.int64)  # slot → row of `flat`; the last entry is NEWLINE's own
        row[(self.kept + np.arange(frames)[:, None] * patches).ravel()] = np.arange(frames * count)
        slots = self.layout[self.places()]
        table = concatenate([flat, newline[None].astype(flat.dtype)])  # the newline is its last row
        return take(table, np.where(slots == NEWLINE, frames * count, row[slots]))


def splice(ids: Sequence[int], embeds: Array, visuals: Sequence[Inserted]) -> tuple[Array, np.ndarray]:
    """Put visual embeddings where their placeholders stand: the one place that counts visual tokens in the prompt.

    Args:
        ids: prompt token ids [S], one placeholder for each.
        embeds: [S, D], the ids' embeddings.
        visuals: what takes their places, in the order of the prompt.

    Returns:
        [S', D], and the position [S'] int64 that each would have without pruning: kept tokens where they stood, text
        after all of them.

    Raises:
        RedipruneError: the prompt's placeholders are not those of the visuals, in order.
    """
    placeholders = {visual.placeholder for visual in visuals}
    found = [(at, token) for at, token in enumerate(ids) if token in placeholders]
    if [token for _, token in found] != [visual.placeholder for visual in visuals]:
        raise RedipruneError("the prompt's placeholders do not match the images and videos in number and order")
    parts: list[Array] = []
    positions: list[np.ndarray] = []
    start, position = 0, 0

    def text(stop: int) -> None:
        nonlocal position
        parts.append(embeds[start:stop])
        positions.append(np.arange(position, position + stop - start))
        position += stop - start

    for (at, _), visual in zip(found, visuals, strict=True):
        text(at)
        parts.append(visual.tokens)
        positions.append(position + visual.places)
        position += visual.total
        start = at + 1
    text(len(ids))
    return concatenate(parts), np.concatenate(positions)
