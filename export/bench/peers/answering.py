"""What the contenders that answer in torch share: the clock of an answer's stages, and the splice of visual tokens."""

import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class Laps:
    """Seconds of one answer: what passed since the last lap is added to the stage that is named."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def first_token(self) -> None:
        """The prefill ends here."""
        self("prefill")
        self.seconds["time_to_first_token"] = time.perf_counter() - self._begin

    def end(self, tokens: int) -> dict[str, float]:
        """The answer ends here, with so many tokens; what `turn.take_turn` wants of it."""
        self("decode")
        decoded = self.seconds["decode"] / max(tokens - 1, 1)  # the first token comes from the prefill
        return self.seconds | {"decode_token": decoded, "total": time.perf_counter() - self._begin, "tokens": tokens}


def splice(ids: Sequence[int], embeds: Tensor, visual: Sequence[Tensor], placeholders: Collection[int]) -> Tensor:
    """[1, S', D]: the prompt's embeddings [S, D] with each placeholder's visual tokens [N, D] in its place."""
    parts, start, tokens = [], 0, iter(visual)
    for at, token in enumerate(ids):
        if token in placeholders:
            parts += [embeds[start:at], next(tokens)]
            start = at + 1
    return torch.cat([*parts, embeds[start:]])[None]
