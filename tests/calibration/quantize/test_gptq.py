"""GPTQ's rounding: what one input loses is made up for by those correlated with it."""

import numpy as np
import pytest
from rediprune.calibration.quantize.block_weights import Int4WeightPass, block_scales, round_to_blocks
from rediprune.calibration.quantize.gptq import gptq_factor, round_with_samples


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(count: int, width: int, seed: int) -> np.ndarray:
    """Rows [count, width] as in a network: a few directions and outlier channels carry most of them."""
    mixing = random(width // 8, width, seed=99) * np.exp(random(width, seed=98))
    return random(count, width // 8, seed=seed) @ mixing + 0.1 * random(count, width, seed=seed + 1)


def test_samples_lessen_the_error_on_other_tokens(products_of, answers_of) -> None:
    width, seen, unseen = 192, correlated(600, 192, 1), correlated(200, 192, 3)
    weight, errors = random(width, 48), []
    for samples in (None, {"x": seen}):
        model = products_of(weight)
        Int4WeightPass(samples)(model)
        (y,) = answers_of(model, unseen[None])
        errors.append(np.linalg.norm(y - unseen @ weight) / np.linalg.norm(unseen @ weight))
    assert errors[1] < 0.5 * errors[0]


def test_uncorrelated_samples_change_nothing(products_of, constant_of) -> None:
    """With independent inputs of one size the errors cannot be made up for: GPTQ is rounding to the nearest."""
    weight = random(64, 9)
    models = [products_of(weight), products_of(weight)]
    for model, samples in zip(models, (None, {"x": np.eye(64, dtype=np.float32) * 3}), strict=True):
        Int4WeightPass(samples)(model)
    nearest, gptq = (constant_of(model, "fc0.weight.int4").astype(int) for model in models)
    assert np.array_equal(nearest, gptq)


@pytest.mark.parametrize("rows", [np.zeros((5, 32), np.float32), np.ones((1, 32), np.float32) * 1e4])
def test_samples_that_say_little_are_no_trouble(products_of, constant_of, rows: np.ndarray) -> None:
    weight = random(32, 6)
    model = products_of(weight)
    Int4WeightPass({"x": rows})(model)
    scales = np.repeat(constant_of(model, "fc0.weight.scale"), 32, axis=0)
    restored = constant_of(model, "fc0.weight.int4").astype(np.float32) * scales
    assert np.linalg.norm(rows @ (restored - weight)) <= 0.1 * np.linalg.norm(rows @ weight)


def test_the_factor_is_that_of_the_damped_moments() -> None:
    rows = correlated(300, 64, 5)
    factor = gptq_factor(rows).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    moments = rows.astype(np.float64).T @ rows / len(rows)
    damped = moments + 0.03 * np.diagonal(moments).mean() * np.eye(64)
    assert np.allclose(factor.T @ factor @ damped, np.eye(64), atol=1e-4)


def test_an_input_without_correlations_rounds_to_the_nearest() -> None:
    weight = random(32, 5, seed=2)
    scales = block_scales(weight, 16, np.dtype(np.float32))
    rounded = round_with_samples(weight.copy(), scales, 16, np.eye(32, dtype=np.float32))
    assert np.array_equal(rounded, round_to_blocks(weight, scales, 16))
