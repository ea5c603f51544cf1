"""Choosing and stopping follow the rules of transformers' `generate`."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.sampling import Sampling, Stopping
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

FEW = settings(max_examples=200, deadline=None, derandomize=True)


def logits_of(seed, size=60):
    """Peaked logits without equals, float64 so that both sides cut at the same token."""
    return np.random.default_rng(seed).standard_normal(size) * 3


def processors(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """transformers' own, in the order `generate` builds them."""
    chain = LogitsProcessorList()
    if repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature != 1:
        chain.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    return chain


def distribution(logits, seen=(), **options):
    scores = processors(**options)(torch.tensor([list(seen)], dtype=torch.int64), torch.tensor(logits)[None])
    return scores.softmax(dim=-1)[0].numpy()


class Recorder:
    """In place of the random generator: shows the distribution that is drawn from."""

    def choice(self, size, p):
        self.size, self.p = size, p
        return int(p.argmax())


def drawn_from(sampling, logits, seen=()):
    recorder = Recorder()
    sampling.choose(logits, seen, recorder)
    assert recorder.size == logits.size
    return recorder.p


def check(logits, seen=(), **options):
    options = {"temperature": 1.0} | options
    ours, theirs = drawn_from(Sampling(**options), logits, seen), distribution(logits, seen, **options)
    assert np.array_equal(ours > 0, theirs > 0)
    # The same formula in float64 on both sides; only sums are in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.5, 20.0])
def test_temperature(seed, temperature):
    check(logits_of(seed), temperature=temperature)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_k", [1, 2, 10, 59, 60, 1000])
def test_top_k(seed, top_k):
    check(logits_of(seed), top_k=top_k)


def test_top_k_keeps_what_equals_the_last():
    logits = np.array([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    check(logits, top_k=2)
    assert (drawn_from(Sampling(temperature=1, top_k=2), logits) > 0).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p(seed, top_p):
    check(logits_of(seed), top_p=top_p)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0])
def test_repetition_penalty(seed, penalty):
    seen = np.random.default_rng(seed).integers(0, 60, 40).tolist()  # with repeats; signs of both kinds
    logits = logits_of(seed)
    before = logits.copy()
    check(logits, seen, repetition_penalty=penalty)
    assert np.array_equal(logits, before)


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.05, 1),
    penalty=st.floats(0.7, 2),
    seen=st.lists(st.integers(0, 59), min_size=1, max_size=30),
)
@FEW
def test_all_together(seed, temperature, top_k, top_p, penalty, seen):
    check(logits_of(seed), seen, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)


def test_float32_logits():
    logits = logits_of(0).astype(np.float32)
    ours = drawn_from(Sampling(temperature=0.7, top_k=10), logits)
    # transformers stays in float32 here.
    np.testing.assert_allclose(ours, distribution(logits, temperature=0.7, top_k=10), rtol=1e-5, atol=1e-7)
    assert ours.dtype == np.float64
    assert math.isclose(ours.sum(), 1, abs_tol=1e-12)  # numpy refuses to draw otherwise


@pytest.mark.parametrize("seed", range(5))
def test_greedy(seed):
    logits = logits_of(seed)
    assert Sampling().choose(logits, [], Recorder()) == logits.argmax()
    assert Sampling(top_k=3, top_p=0.5).choose(logits, [], Recorder()) == logits.argmax()
    assert Sampling().choose(np.array([1.0, 5.0, 5.0]), [], Recorder()) == 1


def test_greedy_with_repetition_penalty():
    logits = np.array([4.0, 3.0, -1.0, -1.5])
    assert Sampling(repetition_penalty=2.0).choose(logits, [0, 0], Recorder()) == 1  # 2 against 3, once only
    assert Sampling(repetition_penalty=2.0).choose(logits - 5, [0], Recorder()) == 0  # −2 against −2: lowest index
    assert Sampling(repetition_penalty=2.1).choose(logits - 5, [0], Recorder()) == 1


def test_draws_follow_the_distribution():
    sampling = Sampling(temperature=1.0)
    random = np.random.default_rng(0)
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    drawn = [sampling.choose(logits, [], random) for _ in range(4000)]
    # Standard deviation of a share is below 0.008.
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.2], atol=0.04)


def test_a_seed_repeats_its_draws():
    sampling = Sampling(temperature=2.0, seed=7)

    def draws(seed):
        random = np.random.default_rng(seed)
        return [sampling.choose(logits_of(step), [], random) for step in range(30)]

    assert draws(sampling.seed) == draws(7)
    assert draws(7) != draws(8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", math.nan),
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", math.inf),
    ],
)
def test_refuses(name, value):
    with pytest.raises(RedipruneError, match=f"^{name} must be .*, not {value}$"):
        Sampling(**{name: value})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_smallest_top_p_keeps_the_likeliest_token():
    probabilities = Sampling(temperature=1.0, top_p=1e-17).probabilities(logits_of(0))
    assert probabilities[logits_of(0).argmax()] == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_smallest_temperature_is_as_good_as_greedy():
    probabilities = Sampling(temperature=1e-310).probabilities(logits_of(0))
    assert probabilities[logits_of(0).argmax()] == 1


def test_refuses_a_negative_seed():
    with pytest.raises(RedipruneError, match="seed"):
        Sampling(temperature=1.0, seed=-1)


# ----------------------------------------------------------------------------------------------------- from_config


def test_from_config_greedy_by_default():
    assert Sampling.from_config({}) == Sampling()
    # The sampling settings of a config that does not sample say nothing.
    assert Sampling.from_config({"do_sample": False, "temperature": 0.6, "top_k": 5, "top_p": 0.9}) == Sampling()
    assert Sampling.from_config({"temperature": 0.6}) == Sampling()
    assert Sampling.from_config({"repetition_penalty": 1.2}) == Sampling(repetition_penalty=1.2)
    assert Sampling.from_config({"repetition_penalty": None}) == Sampling()


CONFIG = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.05}


def test_from_config_samples_where_the_config_does():
    assert Sampling.from_config(CONFIG) == Sampling(0.6, 20, 0.9, 1.05)
    assert Sampling.from_config({"do_sample": True, "top_k": 0}) == Sampling(temperature=1.0)


def test_from_config_overrides():
    nothing = dict.fromkeys(["temperature", "top_k", "top_p", "repetition_penalty", "seed"])
    assert Sampling.from_config(CONFIG, **nothing) == Sampling(0.6, 20, 0.9, 1.05)
    assert Sampling.from_config(CONFIG, temperature=0.0).temperature == 0
    assert Sampling.from_config(CONFIG, top_k=0, top_p=1.0, seed=3) == Sampling(0.6, 0, 1.0, 1.05, 3)
    # A temperature asks for sampling, with the config's other settings.
    assert Sampling.from_config(CONFIG | {"do_sample": False}, temperature=0.3) == Sampling(0.3, 20, 0.9, 1.05)
    with pytest.raises(RedipruneError, match="top_p"):
        Sampling.from_config(CONFIG, top_p=2.0)


def test_settings_of_sampling_ask_for_it():
    """Without a temperature top_k, top_p and seed were greedy without a word; now they are what do_sample makes of them."""
    assert Sampling.from_config({}, top_p=0.9) == Sampling(temperature=1.0, top_k=50, top_p=0.9)
    assert Sampling.from_config({}, top_k=3) == Sampling(temperature=1.0, top_k=3)
    assert Sampling.from_config({}, seed=0) == Sampling(temperature=1.0, top_k=50, seed=0)
    assert Sampling.from_config(CONFIG | {"do_sample": False}, seed=1) == Sampling(0.6, 20, 0.9, 1.05, 1)
    logits = logits_of(3)
    expected = distribution(logits, [], temperature=1.0, top_k=50, top_p=0.9)
    assert np.abs(drawn_from(Sampling.from_config({}, top_p=0.9), logits) - expected).max() < 1e-6
    # Neither a penalty nor nothing asks for it, and temperature 0 is greedy whatever else is given.
    assert Sampling.from_config({}, repetition_penalty=1.2).temperature == 0
    assert Sampling.from_config(CONFIG, temperature=0.0, top_p=0.5, top_k=3, seed=1).temperature == 0


def test_from_config_has_transformers_defaults():
    default = GenerationConfig._get_default_generation_params()
    expected = Sampling(default["temperature"], default["top_k"], default["top_p"], default["repetition_penalty"])
    assert Sampling.from_config({"do_sample": True}) == expected


# -------------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("config", "fallback", "ids"),
    [
        ({}, 2, {2}),
        ({}, None, set()),
        ({"eos_token_id": 0}, 2, {0}),
        ({"eos_token_id": 5}, 2, {5}),
        ({"eos_token_id": [5, 6]}, 2, {5, 6}),
        ({"eos_token_id": []}, 2, set()),
    ],
)
def test_stop_ids(config, fallback, ids):
    assert Stopping(config, fallback).ids == ids


@pytest.mark.parametrize(
    ("configured", "strings", "expected"),
    [(None, (), []), ("###", (), ["###"]), (["a", "b"], ["c"], ["a", "b", "c"]), ([""], ["", "x"], ["x"])],
)
def test_stop_strings(configured, strings, expected):
    assert Stopping({"stop_strings": configured}, None, strings).strings == expected
