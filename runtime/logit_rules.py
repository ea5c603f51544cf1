"""What becomes of logits before a token is chosen: a generation config's rules, as transformers' logits processors and in
their order, and a request's penalties.

Source: `transformers.generation.logits_process` and `GenerationMixin._get_logits_processor`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .errors import RedipruneError


@dataclass(frozen=True)
class Step:
    """Where an answer stands when a token is chosen.

    Attributes:
        seen: ids of the prompt and the answer so far.
        generated: how many of them are the answer's.
        prompt_length: positions of the unpruned prompt, as transformers counts them.
        last: the answer ends with this token, as it has no room for more.
    """

    seen: Sequence[int]
    generated: int = 0
    prompt_length: int = 0
    last: bool = False


LogitRule = Callable[[np.ndarray, Step], np.ndarray]  # logits [V], changed in place


def rules_before_penalty(config: dict[str, Any]) -> list[LogitRule]:
    """The rules that come before the repetition penalty."""
    bias = config.get("sequence_bias")
    if not bias:
        return []
    pairs = bias.items() if isinstance(bias, dict) else bias
    return [partial(_add_bias, [(tuple(sequence), float(value)) for sequence, value in pairs])]


def rules_after_penalty(config: dict[str, Any], eos: Collection[int]) -> list[LogitRule]:
    """The rules that come after the repetition penalty; `eos` are the tokens that end an answer."""
    rules: list[LogitRule] = []
    ends = sorted(eos)
    if size := config.get("no_repeat_ngram_size"):
        rules.append(partial(_ban_repeated, size))
    if words := config.get("bad_words_ids"):
        kept = [(tuple(word), -np.inf) for word in words if not (len(word) == 1 and word[0] in eos)]
        rules.append(partial(_add_bias, kept))
    if (length := config.get("min_length")) and not config.get("min_new_tokens"):
        rules.append(partial(_at_least, length, ends, True))
    if count := config.get("min_new_tokens"):
        rules.append(partial(_at_least, count, ends, False))
    if (forced := config.get("forced_bos_token_id")) is not None:
        rules.append(partial(_force, [forced], lambda step: step.prompt_length + step.generated == 1))
    if (forced := config.get("forced_eos_token_id")) is not None:
        tokens = [forced] if isinstance(forced, int) else forced
        rules.append(partial(_force, tokens, lambda step: step.last))
    if decay := config.get("exponential_decay_length_penalty"):
        rules.append(partial(_favour_end, int(decay[0]), float(decay[1]), ends))
    if tokens := config.get("suppress_tokens"):
        rules.append(partial(_suppress, tokens, lambda step: True))
    if tokens := config.get("begin_suppress_tokens"):
        rules.append(partial(_suppress, tokens, lambda step: step.generated == 0))
    return rules


def rules_of_request(presence: float, frequency: float) -> list[LogitRule]:
    """The penalties of OpenAI's API, which no generation config has.

    Source: OpenAI's API reference, "Frequency and presence penalties": `mu[j] - c[j] * alpha_frequency - float(c[j] > 0) *
    alpha_presence`, c[j] being how often the answer has token j so far. vLLM counts alike.

    Args:
        presence, frequency: 0 is off.
    """
    return [partial(_penalize, presence, frequency)] if presence or frequency else []


def _penalize(presence: float, frequency: float, logits: np.ndarray, step: Step) -> np.ndarray:
    """Tokens of the answer are the less likely, the more often it has them; those of the prompt are not counted."""
    answer = np.asarray(step.seen[len(step.seen) - step.generated :], np.int64)
    tokens, counts = np.unique(answer, return_counts=True)
    logits[tokens] -= (counts * frequency + presence).astype(logits.dtype)
    return logits


def _add_bias(biases: list[tuple[tuple[int, ...], float]], logits: np.ndarray, step: Step) -> np.ndarray:
    """Add a bias to the last token of a sequence where those before it were just seen."""
    for sequence, bias in biases:
        before = sequence[:-1]
        if not before or tuple(step.seen[-len(before) :]) == before:
            _known(sequence, logits)
            logits[sequence[-1]] += bias
    return logits


def _ban_repeated(size: int, logits: np.ndarray, step: Step) -> np.ndarray:
    """No n-gram of this size twice."""
    seen = list(step.seen)
    if len(seen) + 1 >= size:
        begin = tuple(seen[len(seen) + 1 - size :])
        grams = (tuple(seen[at : at + size]) for at in range(len(seen) - size + 1))
        logits[_within([gram[-1] for gram in grams if gram[:-1] == begin], logits)] = -np.inf
    return logits


def _at_least(count: int, ends: list[int], whole: bool, logits: np.ndarray, step: Step) -> np.ndarray:
    """No end before so many tokens, of the answer or of prompt and answer as a whole."""
    if step.generated + (step.prompt_length if whole else 0) < count:
        logits[_within(ends, logits)] = -np.inf
    return logits


def _force(tokens: list[int], when: Callable[[Step], bool], logits: np.ndarray, step: Step) -> np.ndarray:
    """Nothing but these tokens."""
    if when(step):
        _known(tokens, logits)
        logits[:] = -np.inf
        logits[tokens] = 0
    return logits


def _favour_end(start: int, factor: float, ends: list[int], logits: np.ndarray, step: Step) -> np.ndarray:
    """The end is the likelier, the longer an answer is beyond `start`."""
    if step.generated > start:
        growth = factor ** (step.generated - start) - 1
        known = _within(ends, logits)
        logits[known] += np.abs(logits[known]) * growth
    return logits


def _suppress(tokens: list[int], when: Callable[[Step], bool], logits: np.ndarray, step: Step) -> np.ndarray:
    """None of these tokens."""
    if when(step):
        logits[_within(tokens, logits)] = -np.inf
    return logits


def _within(tokens: Collection[int], logits: np.ndarray) -> list[int]:
    """The tokens that the model has; transformers passes over others, such as a placeholder beyond the vocabulary."""
    return [token for token in tokens if 0 <= token < logits.size]


def _known(tokens: Collection[int], logits: np.ndarray) -> None:
    """Refuse a rule about a token that the model does not have, as transformers does."""
    for token in tokens:
        if not 0 <= token < logits.size:
            raise RedipruneError(
                f"the checkpoint's generation config has a rule on token {token}, but the model has {logits.size} tokens; "
                "correct its generation_config.json and export it again"
            )
