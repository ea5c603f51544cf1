"""An image's or video's tokens as data, and the splice into the prompt; `prompt_encoder` decides what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from .backends.arrays import Array, concatenate, take
from .bundle import ModalitySpec
from .errors import RedipruneError
from .media.tiles import NEWLINE, Layout

Kept = np.ndarray | list[np.ndarray]  # [F, K], or the indices of each of F frames


@dataclass(frozen=True)
class Projected:
    """Visual embeddings of an image or a video.

    Attributes:
        embeds: [N, D], in the order the decoder reads them.
        deepstack: [T, N, D], added behind the decoder's first T layers, where the family has it.
    """

    embeds: Array
    deepstack: np.ndarray | None = None

    def part(self, start: int, stop: int) -> "Projected":
        deepstack = None if self.deepstack is None else self.deepstack[:, start:stop]
        return Projected(self.embeds[start:stop], deepstack)


@dataclass(frozen=True)
class Inserted:
    """What stands in place of a placeholder.

    Attributes:
        placeholder: its token id.
        tokens: of N tokens.
        places: [A, N] int64, where each stands behind the text before it, as if nothing were dropped (A axes).
        extent: how far the text behind goes on behind the text before.
    """

    placeholder: int
    tokens: Projected
    places: np.ndarray
    extent: int


@dataclass(frozen=True)
class Visual:
    """An image or a video of a request.

    Attributes:
        frames: the picture, or the sampled frames.
        spec: how its kind becomes tokens.
        features: [F, P, C], F frames or tiles.
        layout: of the token sequence, where it is not all tokens one after another: of tiles, or with a newline.
        kept: [F, K] int64, ascending per frame, all of P while nothing is pruned; or, where frames differ in number, the
            indices of each frame.
        encoded: frames or tiles that went through the tower for this request.
        parts: placeholders in the prompt that stand for it, each for as many frames.
        grid: rows and columns of each frame, where pictures have any size.
        rows: [F, …], what its tokens are projected from, where it is not the features.
        pace: how far a frame's position in time is behind that of the frame before, where positions have three axes.
    """

    kind: str
    frames: list[Image.Image]
    spec: ModalitySpec
    features: Array
    layout: Layout | None
    kept: Kept
    encoded: int = 0
    parts: int = 1
    grid: tuple[int, int] | None = None
    rows: Array | None = None
    pace: float = 1.0

    @property
    def patches(self) -> int:
        """P, tokens of a frame or tile before pruning."""
        return self.features.shape[1]

    @property
    def slots(self) -> np.ndarray:
        """Kept tokens of all frames: frame · P + patch, [N] int64 ascending."""
        return np.concatenate([indices + frame * self.patches for frame, indices in enumerate(self.kept)])

    @property
    def total(self) -> int:
        """Visual tokens without pruning, newlines included."""
        return self.features.shape[0] * self.features.shape[1] if self.layout is None else len(self.layout.slots)

    def places(self) -> np.ndarray:
        """Where the kept tokens, and newlines, stand among all of them: [N] int64 ascending, in 0 … total − 1."""
        if self.layout is None:
            return self.slots
        slots, whole = self.layout.slots, self.features.shape[0] * self.patches
        return np.flatnonzero((slots == NEWLINE) | (slots >= whole) | np.isin(slots, self.slots))

    def inserted(self, tokens: Projected, axes: int) -> list[Inserted]:
        """What stands in place of each of its placeholders, given all its kept tokens.

        Args:
            tokens: N of them.
            axes: of a position; with three they are (time, row, column).
        """
        total = self.total // self.parts
        places, found = self.places(), []
        number = tokens.embeds.shape[0]
        bounds = np.searchsorted(places, total * np.arange(self.parts + 1)).tolist()
        if number != len(places):  # a project stage in place of the bundle's own may merge tokens
            bounds = [at * number // self.parts for at in range(self.parts + 1)]
        for at, (start, stop) in enumerate(pairwise(bounds)):
            own = places[start:stop] - at * total  # [tokens]
            if axes == 1:
                where, extent = own[None], total
            else:
                assert self.grid is not None
                rows, columns = self.grid
                frame, row, column = np.unravel_index(own, (total // (rows * columns), rows, columns))
                time = (frame.astype(np.float32) * np.float32(self.pace)).astype(np.int64)  # cut, as in transformers
                where = np.stack([time, row, column])
                extent = max(rows, columns)
            part = tokens.part(start, stop)
            found.append(Inserted(self.spec.placeholder, part, where, extent))
        return found

    def sequence(self, projected: Array, newline: np.ndarray | None) -> Array:
        """The kept tokens in the order the decoder reads them: [N, D] from projected [F, K, D].

        Rows behind the last kept token are left out: where frames differ in number, K is filled up.

        Of a layout the dropped patches are left out; newlines stay.
        """
        rows, width = projected.shape[0] * projected.shape[1], projected.shape[2]
        flat = projected.reshape(rows, width)[: len(self.slots)]
        count = flat.shape[0]
        if self.layout is None:
            return flat
        assert newline is not None
        whole, mix = self.features.shape[0] * self.patches, self.layout.mix
        parts = [flat] if mix is None else [flat, mix.of(np.asarray(flat))]
        table = concatenate([*parts, newline[None].astype(flat.dtype)])  # the newline is its last row
        row = np.full(whole + 1, NEWLINE, np.int64)  # slot → row of `flat`; the last entry is NEWLINE's own
        row[self.slots] = np.arange(count)
        slots = self.layout.slots[self.places()]
        own = row[np.minimum(slots, whole)]
        chosen = np.where(slots >= whole, slots - whole + count, own)
        return take(table, np.where(slots == NEWLINE, table.shape[0] - 1, chosen))


@dataclass(frozen=True)
class Spliced:
    """A prompt's embeddings.

    Attributes:
        embeds: [S, D].
        positions: [A, S] int64, as if nothing had been dropped: kept tokens where they stood, text after all of them.
        deepstack: [T, S, D], zeros at text, where the family has it.
    """

    embeds: Array
    positions: np.ndarray
    deepstack: np.ndarray | None = None


def splice(ids: Sequence[int], embeds: Array, visuals: Sequence[Inserted], axes: int = 1) -> Spliced:
    """Put visual embeddings where their placeholders stand: the one place that counts visual tokens in the prompt.

    Args:
        ids: prompt token ids [S], one placeholder for each.
        embeds: [S, D], the ids' embeddings.
        visuals: what takes their places, in the order of the prompt.
        axes: of a position.

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
        positions.append(np.tile(np.arange(position, position + stop - start), (axes, 1)))
        position += stop - start

    for (at, _), visual in zip(found, visuals, strict=True):
        text(at)
        parts.append(visual.tokens.embeds)
        positions.append(position + visual.places)
        position += visual.extent
        start = at + 1
    text(len(ids))
    whole, added = concatenate(parts), [visual.tokens.deepstack for visual in visuals]
    deepstack = _deepstack(parts, added) if any(array is not None for array in added) else None
    return Spliced(whole, np.concatenate(positions, axis=1), deepstack)


def _deepstack(parts: Sequence[Array], added: Sequence[np.ndarray | None]) -> np.ndarray:
    """[T, S, D] from what is added at every second part, the visual ones; zeros at the others, the text."""
    first = next(array for array in added if array is not None)
    whole = np.zeros((first.shape[0], sum(part.shape[0] for part in parts), first.shape[2]), first.dtype)
    at = 0
    for number, part in enumerate(parts):
        array = added[number // 2] if number % 2 else None
        if array is not None:
            whole[:, at : at + part.shape[0]] = array
        at += part.shape[0]
    return whole
