"""Budgets are read, and the search for what to leave out measures what it gives."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.calibration.budget import (
    ACCURACY,
    ERROR,
    Budget,
    by_benefit_per_weight,
    fewest_excluded,
    parse_budget,
)
from rediprune.runtime.bundle import Sensitivity
from rediprune.runtime.errors import RedipruneError


def test_budgets_are_read() -> None:
    assert parse_budget("error=2%") == parse_budget("error=0.02")
    assert str(parse_budget("accuracy=1")) == str(parse_budget("accuracy=1%")) == "accuracy=1"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 1))
def test_the_fewest_groups_are_excluded(gains: list[float], most: float) -> None:
    losses = [sum(gains[at:]) for at in range(len(gains) + 1)]  # the last is 0
    if losses[0] <= most:
        return
    asked: list[int] = []

    def loss(count: int) -> float:
        asked.append(count)
        return losses[count]

    count = fewest_excluded(len(gains), loss, most)
    assert count == next(at for at, lost in enumerate(losses) if lost <= most)
    assert len(asked) <= len(gains).bit_length()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0, 1))
def test_a_loss_that_jumps_is_never_taken_unmeasured(losses: list[float], most: float) -> None:
    measured: dict[int, float] = {}
    count = fewest_excluded(len(losses), lambda at: measured.setdefault(at, losses[at]), most)
    assert count == len(losses) or measured[count] <= most


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1%", "takes error=RELATIVE or accuracy=POINTS"),
        ("", "not ''"),
        ("error=", "takes a number, not ''"),
        ("error=much", "takes a number, not 'much'"),
        ("error=0", "more than 0"),
        ("error=1", "less than 1"),
        ("error=100%", "less than 1"),
        ("error=nan", "more than 0"),
        ("error=-inf", "more than 0"),
        ("accuracy=-1", "0 or more"),
        ("accuracy=100", "less than 100"),
        ("accuracy=inf", "less than 100"),
    ],
)
def test_bad_budgets_are_refused(text: str, says: str) -> None:
    with pytest.raises(RedipruneError, match=says):
        parse_budget(text)


@given(st.sampled_from([ERROR, ACCURACY]), st.floats(1e-6, 0.999))
def test_a_budget_is_printed_as_it_is_read(kind: str, limit: float) -> None:
    again = parse_budget(str(Budget(kind, limit)))
    assert again.kind == kind and math.isclose(again.limit, limit, rel_tol=1e-5)


def group(name: str, weights: int, error: float, logits: float) -> Sensitivity:
    return Sensitivity(
        stage="language", unit=name, layers=[name], weights=weights, error=error, logits=logits, tokens=1.0
    )


def test_groups_are_ordered_by_what_they_bring_for_their_size() -> None:
    large, small, none = group("large", 4000, 0.2, 0.01), group("small", 1000, 0.15, 0.02), group("none", 10, 0.0, 0.0)
    # 0.2² / 4000 = 1.0e-5 against 0.15² / 1000 = 2.25e-5
    assert [one.unit for one in by_benefit_per_weight([none, large, small], ERROR)] == ["small", "large", "none"]
    wide = group("wide", 1000, 0.3, 0.0)
    assert [one.unit for one in by_benefit_per_weight([wide, small], ERROR)] == ["wide", "small"]
    assert [one.unit for one in by_benefit_per_weight([wide, small], ACCURACY)] == ["small", "wide"]
