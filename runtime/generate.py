"""From logits to tokens: greedy or sampled choice, and when to stop. Same rules as transformers' `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .options import check_setting


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy.

    The order is transformers': repetition penalty, temperature, top-k, top-p.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_setting(name, value)

    @classmethod
    def from_config(cls, config: dict[str, Any], **overrides: Any) -> "Sampling":
        """The generation config's settings, where `overrides` does not say otherwise (None says nothing).

        A temperature above 0, a top_k, a top_p or a seed asks for sampling, also where the config is greedy: what is
        left open is then the config's, or as transformers has it with `do_sample`. Temperature 0 is greedy whatever
        else is given.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        settings: dict[str, Any] = {"repetition_penalty": config.get("repetition_penalty") or 1.0}
        asked = given.get("temperature", 0) > 0 or not given.keys().isdisjoint(("top_k", "top_p", "seed"))
        if config.get("do_sample") or asked:
            settings |= {
                "temperature": config.get("temperature") or 1.0,
                "top_k": config.get("top_k", 50) or 0,  # transformers' own default
                "top_p": config.get("top_p") or 1.0,
            }
        return cls(**settings | given)

    def choose(self, logits: np.ndarray, seen: Sequence[int], random: np.random.Generator) -> int:
        """The next token id from logits [V]; `seen` are the ids of prompt and answer so far."""
        if self.repetition_penalty != 1:
            ids = np.unique(np.asarray(seen, np.int64))
            logits = logits.copy()
            score = logits[ids]
            with np.errstate(over="ignore"):
                logits[ids] = np.where(score < 0, score * self.repetition_penalty, score / self.repetition_penalty)
        if self.temperature == 0:
            return int(logits.argmax())
        return int(random.choice(logits.size, p=self.probabilities(logits)))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The distribution sampled from: [V] float64, after temperature, top-k and top-p."""
        # The largest is taken off first: divided by a tiny temperature it would overflow.
        with np.errstate(over="ignore"):
            scaled = (logits.astype(np.float64) - logits.max()) / self.temperature
        if 0 < self.top_k < scaled.size:
            scaled[scaled < np.partition(scaled, -self.top_k)[-self.top_k]] = -np.inf
        weights = np.exp(scaled)
        weights /= weights.sum()
        if self.top_p < 1:
            order = np.argsort(weights, kind="stable")[:-1]  # the least likely first; the likeliest always stays
            weights[order[np.cumsum(weights[order]) <= 1 - self.top_p]] = 0
            weights /= weights.sum()
        return weights


class Stopping:
    """Stop tokens and stop strings. The text before a stop string is the answer."""

    def __init__(self, config: dict[str, Any], fallback_eos: Any, strings: Sequence[str] = ()):
        configured_eos = config.get("eos_token_id")
        eos = fallback_eos if configured_eos is None else configured_eos
        self.ids = {eos} if isinstance(eos, int) else set(eos or ())
        configured = config.get("stop_strings") or []
        configured = [configured] if isinstance(configured, str) else configured
        self.strings = [string for string in (*configured, *strings) if string]

    def cut(self, text: str) -> str | None:
        """The text before the first stop string, None while there is none."""
        ends = [at for string in self.strings if (at := text.find(string)) >= 0]
        return text[: min(ends)] if ends else None

    def held_back(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string, and must not be shown yet."""
        longest = 0
        for string in self.strings:
            for size in range(1, min(len(string), len(text) + 1)):
                if text.endswith(string[:size]):
                    longest = max(longest, size)
        return longest
