"""How near arrays and kept sets are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.calibration.evaluation.similarity import jaccard, nearness


def test_jaccard_of_kept_sets() -> None:
    one = np.array([[0, 1, 2], [4, 5, 6]])
    assert jaccard(one, one) == 1.0
    assert jaccard(one, np.array([[0, 1, 3], [7, 8, 9]])) == pytest.approx((2 / 4 + 0) / 2)


@given(st.integers(0, 99), st.floats(0.1, 10))
def test_a_multiple_points_the_same_way(seed: int, factor: float) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 5)).astype(np.float32)
    near = nearness(factor * x, x)
    assert near.cosine == pytest.approx(1.0) and near.relative_error == pytest.approx(abs(factor - 1), abs=1e-6)


def test_what_is_zero_is_finite() -> None:
    zero, one = np.zeros(4), np.ones(4)
    assert nearness(zero, one).cosine == 0 and nearness(zero, one).relative_error == 1
    assert nearness(zero, zero).relative_error == 0
    assert np.isfinite(nearness(one, zero).relative_error)
