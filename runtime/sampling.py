"""From logits to tokens: greedy or sampled choice, and when to stop. Same rules as transformers' `generate`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import RedipruneError
from .generation_settings import refuse_unsupported
from .logit_rules import (
    LogitRule,
    Step,
    rules_after_penalty,
    rules_before_penalty,
    rules_of_request,
)
from .options import check_setting


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy.

    The order is transformers': sequence bias, repetition penalty, the other rules of the generation config
    (`logit_rules`); where it samples temperature, top-k, top-p, min-p, typical-p, epsilon and eta cutoff. A request's
    presence and frequency penalties come right after the repetition penalty.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    before_penalty: tuple[LogitRule, ...] = field(default=(), compare=False)
    after_penalty: tuple[LogitRule, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed"):
            check_setting(name, getattr(self, name))
        for name in ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise RedipruneError(f"{name} must be from 0 to 1, not {getattr(self, name)}")

    @classmethod
    def from_config(cls, config: dict[str, Any], eos: Collection[int] = (), **overrides: Any) -> "Sampling":
        """The generation config's settings, where `overrides` does not say otherwise (None says nothing).

        A temperature or min_p above 0, a top_k, a top_p or a seed asks for sampling, also where the config is greedy: what is
        left open is then the config's, or as transformers has it with `do_sample`. Temperature 0 is greedy wherever it
        is written, whatever else is given.

        Args:
            config: the checkpoint's generation config.
            eos: tokens that end an answer, for rules on its length.
            overrides: settings of the request.

        Raises:
            RedipruneError: a setting is not in its range, or the config asks for what is not supported.
        """
        refuse_unsupported(config)
        given = {key: value for key, value in overrides.items() if value is not None}
        penalty = config.get("repetition_penalty")
        settings: dict[str, Any] = {"repetition_penalty": 1.0 if penalty is None else penalty}
        asked = given.get("temperature", 0) > 0 or not given.keys().isdisjoint(("top_k", "top_p", "seed"))
        asked = asked or given.get("min_p", 0) > 0
        if config.get("do_sample") or asked:
            usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}  # transformers' own
            usual |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
            settings |= {name: value if config.get(name) is None else config[name] for name, value in usual.items()}
        penalties = rules_of_request(given.pop("presence_penalty", 0), given.pop("frequency_penalty", 0))
        before, after = rules_before_penalty(config), [*penalties, *rules_after_penalty(config, eos)]
        return cls(**settings | given, before_penalty=tuple(before), after_penalty=tuple(after))

    def choose(
        self,
        logits: np.ndarray,
        seen: Sequence[int],
        random: np.random.Generator,
        generated: int = 0,
        prompt_length: int = 0,
        last: bool = False,
    ) -> int:
        """The next token id.

        Args:
            logits: [V], of the language stage.
            seen: ids of the prompt and the answer so far.
            random: what a sampled token is drawn with.
            generated, prompt_length, last: as in `logit_rules.Step`.

        Raises:
            RedipruneError: the logits are not finite.
        """
        if not np.isfinite(logits.max()):  # a token may be ruled out by −∞, but not all of them
            raise RedipruneError(
                "stage 'language' gave logits that are NaN or infinite: its precision cannot hold the model's values; "
                "export the checkpoint with --precision fp32, or run this stage with --eager language to compare"
            )
        logits = self._ruled(logits, Step(seen, generated, prompt_length, last))
        if self.temperature == 0:
            return int(logits.argmax())
        return int(random.choice(logits.size, p=self.probabilities(logits)))

    def _ruled(self, logits: np.ndarray, step: Step) -> np.ndarray:
        """Logits after the rules and the repetition penalty."""
        if self.before_penalty or self.after_penalty or self.repetition_penalty != 1:
            logits = logits.copy()
        for rule in self.before_penalty:
            logits = rule(logits, step)
        if self.repetition_penalty != 1:
            ids = np.unique(np.asarray(step.seen, np.int64))
            ids = ids[ids < logits.size]  # a placeholder may lie beyond
            score = logits[ids]
            with np.errstate(over="ignore"):
                logits[ids] = np.where(score < 0, score * self.repetition_penalty, score / self.repetition_penalty)
        for rule in self.after_penalty:
            logits = rule(logits, step)
        return logits

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The distribution sampled from: [V] float64, after all that the settings leave out."""
        # The largest is taken off first: divided by a tiny temperature it would overflow.
        with np.errstate(over="ignore"):
            scaled = (logits.astype(np.float64) - logits.max()) / self.temperature
        if 0 < self.top_k < scaled.size:
            scaled[scaled < np.partition(scaled, -self.top_k)[-self.top_k]] = -np.inf
        weights = _normalized(np.exp(scaled))
        if self.top_p < 1:
            weights = _normalized(_nucleus(weights, self.top_p))
        if self.min_p > 0:
            weights = _normalized(np.where(weights < self.min_p * weights.max(), 0, weights))
        if self.typical_p < 1:
            weights = _normalized(_typical(weights, self.typical_p))
        if self.epsilon_cutoff > 0:
            weights = _without(weights, self.epsilon_cutoff)
        if self.eta_cutoff > 0:
            entropy = -np.sum(weights[weights > 0] * np.log(weights[weights > 0]))
            weights = _without(weights, min(self.eta_cutoff, self.eta_cutoff**0.5 * np.exp(-entropy)))
        return weights


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _without(weights: np.ndarray, least: float) -> np.ndarray:
    """Without tokens below a probability; the likeliest always stay."""
    return _normalized(np.where((weights < least) & (weights < weights.max()), 0, weights))


def _nucleus(weights: np.ndarray, mass: float) -> np.ndarray:
    """The likeliest tokens up to a mass (arXiv 1904.09751)."""
    # Tokens so unlikely that even all of a vocabulary of them have no such mass: to sort the others takes a moment only.
    tail = (weights <= (1 - mass) / weights.size) & (weights < weights.max())
    likely = np.flatnonzero(~tail)
    order = likely[np.argsort(weights[likely], kind="stable")][
        :-1
    ]  # the least likely first; the likeliest always stays
    beyond = weights[tail].sum() + np.cumsum(weights[order]) <= 1 - mass
    kept = weights.copy()
    kept[tail] = 0
    kept[order[beyond]] = 0
    return kept


def _typical(weights: np.ndarray, mass: float) -> np.ndarray:
    """The tokens whose surprise is nearest to the expected one, up to a mass (arXiv 2202.00666)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(weights)
        entropy = np.nansum(weights * surprise)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(weights[order]) < mass).sum()), weights.size - 1)
    return np.where(distance > distance[order[last]], 0, weights)


class Stopping:
    """Stop tokens and stop strings, the generation config's and the request's.

    Attributes:
        ids: tokens that end an answer.
        strings: texts that do (`stop_strings`); the text before one is the answer.
    """

    def __init__(self, config: dict[str, Any], fallback_eos: Any, strings: Sequence[str] = ()):
        configured_eos = config.get("eos_token_id")
        eos = fallback_eos if configured_eos is None else configured_eos
        self.ids = {eos} if isinstance(eos, int) else set(eos or ())
        configured = config.get("stop_strings") or []
        configured = [configured] if isinstance(configured, str) else configured
        self.strings = [string for string in (*configured, *strings) if string]
