"""Visual tokens on their way into the prompt: what an image or video became, what of it is kept, where it goes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backends.arrays import Array, concatenate, take
from .bundle import ModalitySpec
from .errors import RedipruneError

NEWLINE = -1  # in a layout: the newline embedding


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
    """

    kind: str
    frames: list[Image.Image]
    spec: ModalitySpec
    features: Array
    layout: np.ndarray | None
    kept: np.ndarray
    encoded: int = 0

    @property
    def total(self) -> int:
        """Visual tokens without pruning, newlines included."""
        return self.features.shape[0] * self.features.shape[1] if self.layout is None else len(self.layout)

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
        slots = self.layout[(self.layout == NEWLINE) | (row[self.layout] != NEWLINE)]
        table = concatenate([flat, newline[None].astype(flat.dtype)])  # the newline is its last row
        return take(table, np.where(slots == NEWLINE, frames * count, row[slots]))


def splice(ids: Sequence[int], embeds: Array, visuals: Sequence[tuple[int, Array]]) -> Array:
    """Put visual embeddings where their placeholders stand: the one place that counts visual tokens in the prompt.

    Args:
        ids: prompt token ids [S], one placeholder per visual.
        embeds: [S, D], the ids' embeddings.
        visuals: (placeholder id, [N, D]) in the order of the prompt.

    Returns:
        [S', D]: kept tokens take consecutive positions, as in the release.

    Raises:
        RedipruneError: the prompt's placeholders are not those of the visuals, in order.
    """
    placeholders = {placeholder for placeholder, _ in visuals}
    places = [(at, token) for at, token in enumerate(ids) if token in placeholders]
    if [token for _, token in places] != [placeholder for placeholder, _ in visuals]:
        raise RedipruneError("the prompt's placeholders do not match the images and videos in number and order")
    parts: list[Array] = []
    start = 0
    for (at, _), (_, tokens) in zip(places, visuals, strict=True):
        parts += [embeds[start:at], tokens]
        start = at + 1
    return concatenate([*parts, embeds[start:]])
