"""Scores: intervals, and how far two answers go alike."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.calibration.evaluation.scores import Reply, Score, paired_change, tokens_alike, wilson


def test_wilson_interval() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Wilson 1927, as statsmodels has it
    assert wilson(10, 10)[1] == pytest.approx(1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_lies_around_the_share_and_within_bounds(asked: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, asked))
    low, high = wilson(right, asked)
    assert -1e-12 <= low <= right / asked + 1e-12 and right / asked - 1e-12 <= high <= 1 + 1e-12
    mirrored = wilson(asked - right, asked)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-12) and math.isclose(high, 1 - mirrored[0], abs_tol=1e-12)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_a_paired_change_is_exact_at_its_centre_and_nought_where_nothing_changed(
    lost: int, gained: int, same: int
) -> None:
    asked = lost + gained + same + 1
    change, spread = paired_change(lost, gained, asked)
    assert change == (gained - lost) / asked and 0 <= spread <= 1.96 * ((lost + gained) ** 0.5) / asked
    assert (spread == 0) == (lost + gained == 0)


def score(*answers: tuple[str, bool, list[int]]) -> Score:
    replies = [Reply(text, right, 5, 10, 0.5, 100.0, ids) for text, right, ids in answers]
    return Score("few", "ort", "rediprune", 0.5, ["a", "b", "a"][: len(replies)], replies)


def test_a_score_counts_its_replies_by_kind() -> None:
    one = score(("x", True, [1, 2]), ("y", False, [3]), ("z", False, []))
    assert one.asked == {"a": 2, "b": 1} and one.right == {"a": 1, "b": 0}
    assert one.accuracy == pytest.approx(1 / 3) and one.interval() == wilson(1, 3)
    assert (one.visual_tokens, one.all_tokens, one.first_token, one.prefill_macs) == (5, 10, 0.5, 100.0)
    document = one.document()
    assert document["keep"] == 0.5 and document["interval"] == wilson(1, 3) and "replies" not in document


def test_two_scores_are_alike_as_far_as_their_answers_are() -> None:
    one = score(("x", True, [1, 2, 3]), ("y", True, [4]), ("", False, []))
    other = score(("x", False, [1, 2, 9, 9]), ("Y", True, [5]), ("", False, []))
    assert one.same_answers(other) == 2
    assert one.same_ids(one) == pytest.approx(2 / 3)  # an answer of no tokens shares none
    assert one.same_ids(other) == pytest.approx((2 / 4 + 0 + 0) / 3)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_tokens_alike_is_the_common_prefix(ours: list[int], theirs: list[int]) -> None:
    count = tokens_alike(ours, theirs)
    assert ours[:count] == theirs[:count]
    assert ours[count : count + 1] != theirs[count : count + 1] or count == len(ours) == len(theirs)
