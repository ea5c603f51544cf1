"""Ranges of activations: cut where that is free, whole where the large values are the signal."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rediprune.calibration.quantize.activation_ranges import RANGES, minmax

CUTS = ["percentile", "entropy"]


def rounded(rows: np.ndarray, top: float) -> np.ndarray:
    """INT8 as the graph has it."""
    step = top / 127
    return np.clip(np.rint(rows / step), -127, 127) * step


def worst(rows: np.ndarray, top: float) -> float:
    exact = rows.astype(np.float64)  # in float32 the norm of a row below 1e-23 is 0
    return float((np.linalg.norm(rounded(exact, top) - exact, axis=1) / np.linalg.norm(exact, axis=1)).max())


@pytest.mark.parametrize("name", CUTS)
def test_what_a_gate_lets_through_keeps_its_range(name: str) -> None:
    """Nearly everything is close to 0, and the few large values are what the layer is about."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((2000, 96)).astype(np.float32) * 0.005
    rows[np.arange(2000), random.integers(0, 96, 2000)] = random.uniform(4, 8, 2000)
    top = RANGES[name](np.abs(rows).max(axis=0), rows)
    assert worst(rows, top) < 0.02
    assert top > 7.5


@pytest.mark.parametrize("name", CUTS)
def test_what_hardly_a_token_reaches_is_cut(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 96)).astype(np.float32)
    largest = np.abs(rows).max(axis=0)
    largest[5] = 40.0  # of one token in all the samples, which is not among the rows
    top = RANGES[name](largest, rows)
    assert top < 8
    assert worst(rows, top) < worst(rows, 40.0)


@pytest.mark.parametrize("name", CUTS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), power=st.integers(1, 7), width=st.integers(1, 40))
@example(seed=5, power=5, width=1)  # its smallest row is 8e-25
def test_no_row_is_worse_off_than_under_the_whole_range(name: str, seed: int, power: int, width: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((300, width)).astype(np.float32) ** power
    largest = np.abs(rows).max(axis=0)
    top = RANGES[name](largest, rows)
    assert 0 < top <= minmax(largest, rows)
    assert worst(rows, top) <= worst(rows, minmax(largest, rows)) * (1 + 1e-4)


@pytest.mark.parametrize("name", list(RANGES))
def test_an_input_that_is_always_zero(name: str) -> None:
    assert RANGES[name](np.zeros(8, np.float32), np.zeros((5, 8), np.float32)) == 0
