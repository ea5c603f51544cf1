"""What the peers that answer in torch share: the timer of an answer's stages, and the splice of visual tokens."""

import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ....runtime.timing import StageClock


class AnswerTimer(StageClock):
    """Seconds of one answer, from the making of the timer on: by stage, to the first token, per token and in all."""

    def __init__(self) -> None:
        super().__init__()
        self._begin = self._first = time.perf_counter()

    def first_token(self) -> None:
        """The first token is known."""
        self._first = time.perf_counter()

    def finish(self, tokens: int) -> dict[str, float]:
        """The answer is complete.

        Args:
            tokens: how many it has.

        Returns:
            Seconds by stage, and what else `turn.take_turn` wants of an answer.
        """
        end = time.perf_counter()
        return self.seconds | {
            "time_to_first_token": self._first - self._begin,
            "decode": end - self._first,
            "decode_token": (end - self._first) / max(tokens - 1, 1),  # the first token comes from the prefill
            "total": end - self._begin,
            "tokens": tokens,
        }


def splice(ids: Sequence[int], embeds: Tensor, visual: Sequence[Tensor], placeholders: Collection[int]) -> Tensor:
    """[1, S', D]: the prompt's embeddings [S, D] with each placeholder's visual tokens [N, D] in its place."""
    parts, start, tokens = [], 0, iter(visual)
    for at, token in enumerate(ids):
        if token in placeholders:
            parts += [embeds[start:at], next(tokens)]
            start = at + 1
    return torch.cat([*parts, embeds[start:]])[None]
