"""Bytes of bodies that are held at once."""

import pytest
from rediprune.runtime.serving.api_error import ApiError
from rediprune.runtime.serving.body_budget import BodyBudget


def test_a_budget_is_shared_and_given_back() -> None:
    budget = BodyBudget(100)
    with budget.share() as one, budget.share() as other:
        one.take(60)
        other.take(40)
        with pytest.raises(ApiError) as refused:
            other.take(1)
        assert refused.value.status == 429 and refused.value.headers["Retry-After"]
    assert budget.held == 0
    with pytest.raises(RuntimeError), budget.share() as failing:
        failing.take(100)
        raise RuntimeError
    assert budget.held == 0
