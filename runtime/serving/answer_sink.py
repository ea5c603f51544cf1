"""A request's tokens as the scheduler computes them: chosen, made into text, and handed to whoever waits for them."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..detokenize import AnswerText
from ..sampling import Sampling

_NEVER = -9999.0  # OpenAI's log probability of what is ruled out; JSON has no −∞


@dataclass(frozen=True)
class Piece:
    """What one token brought.

    Attributes:
        text: what may be shown after it, possibly nothing.
        logprobs: its log probabilities as OpenAI writes them, where they were asked for.
        finish_reason: "stop" or "length" with the last token, else None.
    """

    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Failure:
    """The request ended by a fault."""

    error: Exception


class AnswerSink:
    """The `TokenSink` of one request.

    Args:
        sampling: chooses its tokens.
        prompt_ids: token ids of the prompt, for the repetition penalty.
        prompt_length: positions of the unpruned prompt, for rules on an answer's length.
        text: makes text of its tokens.
        stop_ids: tokens that end it.
        max_new_tokens: it ends after so many at the latest.
        logprobs: makes log probabilities of logits [V] and the chosen id; None: they are not asked for.
        deliver: takes every piece; called by the scheduler's thread.
        at_once: deliver one piece, at the end: nobody reads along, and waking the reader costs as much as a small token.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: list[int],
        prompt_length: int,
        text: AnswerText,
        stop_ids: Collection[int],
        max_new_tokens: int,
        logprobs: Callable[[np.ndarray, int], dict[str, Any]] | None,
        deliver: Callable[[Piece | Failure], None],
        at_once: bool = False,
    ):
        self._sampling, self._text, self._stop_ids = sampling, text, stop_ids
        self._seen, self._prompt, self._length = list(prompt_ids), len(prompt_ids), prompt_length
        self._random = np.random.default_rng(sampling.seed)
        self._max_new_tokens, self._logprobs, self._deliver = max_new_tokens, logprobs, deliver
        self._kept: list[str] | None = [] if at_once and logprobs is None else None
        self.times: list[float] = []  # when each token came (`time.perf_counter`)

    @property
    def token_ids(self) -> list[int]:
        """The answer's tokens so far, the stop token included."""
        return self._seen[self._prompt :]

    def token(self, logits: np.ndarray) -> int | None:
        generated = len(self._seen) - self._prompt
        full = generated == self._max_new_tokens - 1
        chosen = self._sampling.choose(logits, self._seen, self._random, generated, self._length, full)
        self._seen.append(chosen)
        self.times.append(time.perf_counter())
        stopped = chosen in self._stop_ids
        last = stopped or len(self._seen) - self._prompt == self._max_new_tokens
        text = self._text.add(chosen, last)
        stopped = stopped or self._text.stopped
        last = last or stopped
        logprobs = None if self._logprobs is None else self._logprobs(logits, chosen)
        if self._kept is not None:
            self._kept.append(text)
            if not last:
                return chosen
            text = "".join(self._kept)
        self._deliver(Piece(text, logprobs, ("stop" if stopped else "length") if last else None))
        return None if last else chosen

    def failed(self, error: Exception) -> None:
        self._deliver(Failure(error))


def token_logprobs(logits: np.ndarray, chosen: int, top: int, text: Callable[[int], str]) -> dict[str, Any]:
    """A token's log probability under the model, and those of the most likely ones, as OpenAI writes them.

    Args:
        logits: [V], before any sampling setting.
        chosen: the token.
        top: how many of the most likely ones.
        text: a token's text.
    """
    scaled = logits.astype(np.float64) - logits.max()
    log_sum = np.log(np.exp(scaled).sum())

    def entry(token: int) -> dict[str, Any]:
        shown = text(token)
        return {
            "token": shown,
            "logprob": max(float(scaled[token] - log_sum), _NEVER),
            "bytes": list(shown.encode("utf-8")),
        }

    likeliest = np.argsort(-scaled, kind="stable")[:top] if top else ()
    return entry(chosen) | {"top_logprobs": [entry(int(token)) for token in likeliest]}
