"""Every rule of a generation config against transformers' own logits processor, alone and in `generate`'s order."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.sampling import Sampling
from transformers import GenerationConfig, GenerationMixin, LlamaConfig
from transformers.generation.logits_process import LogitsProcessorList

SIZE, EOS = 24, [3, 5]


class _Generation(GenerationMixin):
    """As much of a model as `_get_logits_processor` needs."""

    def __init__(self, config: dict[str, Any], prompt: int, room: int):
        self.generation_config = GenerationConfig(**config)
        made = self.generation_config
        made._eos_token_tensor = torch.tensor(EOS)  # pyright: ignore[reportAttributeAccessIssue]
        made.max_length = prompt + room
        if made.min_new_tokens:
            made.min_length = prompt + made.min_new_tokens
        self.prompt, self.config = prompt, LlamaConfig()

    def processors(self) -> LogitsProcessorList:
        return self._get_logits_processor(
            self.generation_config,
            input_ids_seq_length=self.prompt,
            device="cpu",
            logits_processor=LogitsProcessorList(),
        )


def theirs(config: dict[str, Any], logits: np.ndarray, seen: list[int], prompt: int, room: int) -> np.ndarray:
    chain = _Generation(config, prompt, room).processors()
    return chain(torch.tensor([seen]), torch.tensor(logits)[None].clone())[0].numpy()


def ours(config: dict[str, Any], logits: np.ndarray, seen: list[int], prompt: int, room: int) -> np.ndarray:
    """The log probabilities drawn from, or the scores of a greedy choice."""
    sampling = Sampling.from_config(config, EOS)
    generated = len(seen) - prompt

    class Recorder:
        p: np.ndarray

        def choice(self, size: int, p: np.ndarray) -> int:
            self.p = p
            return 0

    recorder: Any = Recorder()
    chosen = sampling.choose(logits, seen, recorder, generated, prompt, generated == room - 1)
    return np.array([chosen]) if sampling.temperature == 0 else recorder.p


CONFIGS: list[dict[str, Any]] = [
    {"suppress_tokens": [1, 2, 7]},
    {"begin_suppress_tokens": [1, 2, 7]},
    {"bad_words_ids": [[4], [6, 7], [8, 9, 10], [3]]},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 4},
    {"min_length": 9},
    {"forced_eos_token_id": 3},
    {"forced_bos_token_id": 4},
    {"exponential_decay_length_penalty": (2, 1.5)},
    {"sequence_bias": [[[4], 3.0], [[6, 7], -5.0], [[1, 2, 3], 9.0]]},
    {"repetition_penalty": 1.7},
]
SAMPLED: list[dict[str, Any]] = [
    {"min_p": 0.2},
    {"typical_p": 0.6},
    {"epsilon_cutoff": 0.03},
    {"eta_cutoff": 0.05},
    {"top_k": 4},
    {"top_p": 0.7},
    {"temperature": 0.5},
]

few = settings(max_examples=150, deadline=None, derandomize=True)
tokens = st.lists(st.integers(0, 10), min_size=1, max_size=14)


@few
@given(st.sampled_from(CONFIGS), tokens, st.integers(0, 6), st.integers(0, 10**6))
def test_each_rule_alone(config: dict[str, Any], prompt: list[int], generated: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    seen = [*prompt, *random.integers(0, 11, generated).tolist()]
    logits = random.standard_normal(SIZE) * 3
    expected = theirs(config, logits, seen, len(prompt), 7)
    assert ours(config, logits, seen, len(prompt), 7)[0] == expected.argmax()


@few
@given(
    st.lists(st.sampled_from(CONFIGS), max_size=4),
    st.lists(st.sampled_from(SAMPLED), max_size=3),
    tokens,
    st.integers(0, 6),
    st.integers(0, 10**6),
)
def test_rules_together_and_sampled(
    rules: list[dict[str, Any]], sampled: list[dict[str, Any]], prompt: list[int], generated: int, seed: int
) -> None:
    config: dict[str, Any] = {"do_sample": True, "top_k": 0}
    for rule in (*rules, *sampled):
        config |= rule
    random = np.random.default_rng(seed)
    seen = [*prompt, *random.integers(0, 11, generated).tolist()]
    logits = random.standard_normal(SIZE) * 3
    scores = theirs(config, logits, seen, len(prompt), 7)
    expected = np.exp(scores - scores.max())
    np.testing.assert_allclose(
        ours(config, logits, seen, len(prompt), 7), expected / expected.sum(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
        ("num_return_sequences", 2),
        ("prompt_lookup_num_tokens", 3),
        ("force_words_ids", [[1]]),
        ("watermarking_config", {}),
        ("top_h", 0.4),
        ("encoder_no_repeat_ngram_size", 2),
    ],
)
def test_what_is_no_rule_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RedipruneError, match=rf"{name} = .* not supported"):
        Sampling.from_config({name: value})


@pytest.mark.parametrize("name", ["num_beams", "guidance_scale", "num_return_sequences"])
def test_what_is_off_is_not_refused(name: str) -> None:
    assert Sampling.from_config({name: 1}) == Sampling() == Sampling.from_config({name: None})


def test_temperature_0_in_the_config_is_greedy() -> None:
    assert Sampling.from_config({"do_sample": True, "temperature": 0.0}).temperature == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_name_the_stage(bad: float) -> None:
    logits = np.zeros(SIZE, np.float32)
    logits[2] = bad
    with pytest.raises(RedipruneError, match=r"language.*NaN or infinite"):
        Sampling().choose(logits, [1], np.random.default_rng(0))


def test_a_token_may_be_ruled_out_but_not_all() -> None:
    logits = np.zeros(SIZE, np.float32)
    logits[0] = -np.inf
    assert Sampling().choose(logits, [1], np.random.default_rng(0)) == 1
    with pytest.raises(RedipruneError, match="NaN or infinite"):
        Sampling().choose(np.full(SIZE, -np.inf), [1], np.random.default_rng(0))


@few
@given(tokens, st.lists(st.integers(0, 10), max_size=9), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 10**6))
def test_penalties_are_openais(
    prompt: list[int], answer: list[int], presence: float, frequency: float, seed: int
) -> None:
    """The formula of OpenAI's API reference, token by token; the prompt does not count."""
    logits = np.random.default_rng(seed).standard_normal(SIZE)
    expected = [
        logit - answer.count(token) * frequency - (answer.count(token) > 0) * presence
        for token, logit in enumerate(logits)
    ]
    sampling = Sampling.from_config({}, EOS, presence_penalty=presence, frequency_penalty=frequency)
    before = logits.copy()
    chosen = sampling.choose(logits, [*prompt, *answer], np.random.default_rng(0), len(answer), len(prompt))
    np.testing.assert_array_equal(logits, before)
    assert expected[chosen] == pytest.approx(max(expected), abs=1e-12)


def test_penalties_stand_behind_the_repetition_penalty_and_before_what_is_ruled_out() -> None:
    logits = np.array([4.0, 2.0, 1.0, 0.5])
    for config, penalties, expected in (
        ({}, {}, 0),
        ({}, {"presence_penalty": 1.9}, 0),  # 4 − 1.9
        ({}, {"frequency_penalty": 1.1}, 1),  # 4 − 2.2
        ({"repetition_penalty": 1.5}, {"presence_penalty": 0.6}, 0),  # 4 / 1.5 − 0.6 = 2.07
        ({"repetition_penalty": 1.5}, {"presence_penalty": 0.7}, 1),  # 4 / 1.5 − 0.7 = 1.97
        ({"suppress_tokens": [1]}, {"frequency_penalty": 1.1}, 0),
    ):
        sampling = Sampling.from_config(config, EOS, **penalties)
        assert sampling.choose(logits, [2, 0, 0], np.random.default_rng(0), 2, 1) == expected


# ------------------------------------------------------------------------------------- tokens that the model lacks


@pytest.mark.parametrize("config", [{"suppress_tokens": [2, SIZE, -1]}, {"begin_suppress_tokens": [SIZE + 9, 2]}])
def test_tokens_to_suppress_that_are_none_are_passed_over(config: dict[str, Any]) -> None:
    """As transformers does; −1 is not the last token."""
    logits = np.linspace(-1, 3, SIZE, dtype=np.float32)
    assert ours(config, logits, [1, 2], 2, 9) == theirs(config, logits, [1, 2], 2, 9).argmax() == SIZE - 1


@pytest.mark.parametrize("config", [{"min_new_tokens": 5}, {"exponential_decay_length_penalty": [0, 2.0]}])
def test_an_end_that_is_no_token_is_no_other_one(config: dict[str, Any]) -> None:
    logits = np.linspace(-1, 3, SIZE, dtype=np.float32)
    sampling = Sampling.from_config(config, [-1, SIZE])
    assert sampling.choose(logits, [1, 2, 3], np.random.default_rng(0), 1, 2) == SIZE - 1


@pytest.mark.parametrize(
    "config",
    [{"sequence_bias": [[[SIZE], 1.0]]}, {"bad_words_ids": [[1, SIZE]]}, {"forced_eos_token_id": SIZE}],
)
def test_a_rule_on_a_token_that_is_none_is_refused(config: dict[str, Any]) -> None:
    sampling = Sampling.from_config(config, EOS)
    with pytest.raises(RedipruneError, match=f"a rule on token {SIZE}, but the model has {SIZE} tokens"):
        sampling.choose(np.zeros(SIZE, np.float32), [1], np.random.default_rng(0), 1, 0, True)


@pytest.mark.parametrize("config", [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}])
def test_a_placeholder_beyond_the_vocabulary_is_passed_over(config: dict[str, Any]) -> None:
    logits = np.linspace(1, 3, SIZE, dtype=np.float32)
    assert ours(config, logits, [SIZE + 3, SIZE - 1], 2, 9) == SIZE - 2
