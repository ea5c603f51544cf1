"""Answers in lower precision: a near tie may fall the other way, anything worse fails."""

import numpy as np
import pytest
from rediprune.export.validate.cases import EndToEndCase
from rediprune.export.validate.end_to_end_comparison import HALF_GAP, QUANTIZED_GAP, EndToEndRow, judge_answer

THEIRS = [3, 5, 7, 9, 2]
KEPT = [np.array([[1, 4], [2, 6]])]
SPREAD = np.arange(100, dtype=np.float32).std()


def logits(token: int) -> np.ndarray:
    """[V] from 0 to 99: the answer's own token has the highest, the others keep their order."""
    order = [number for number in range(100) if number != token] + [token]
    values = np.empty(100, np.float32)
    values[order] = np.arange(100)
    return values


CASE = EndToEndCase("image, keep = 0.5", {}, [], [], THEIRS, np.stack([logits(token) for token in THEIRS]), KEPT)


def taken(at: int, below: float) -> list[int]:
    """The reference's answer but for one token: that whose logit lies so many standard deviations below the best."""
    token = int(np.abs(CASE.logits[at] - (99 - below * SPREAD)).argmin())
    return [*THEIRS[:at], token, *(1,) * (len(THEIRS) - at - 1)]


def judge(token_ids: list[int], precision: str, kept: list[np.ndarray] = KEPT) -> EndToEndRow:
    return judge_answer(CASE, token_ids, kept, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_same_answer_passes(precision: str) -> None:
    row = judge(THEIRS, precision)
    assert row.passed and row.equal and row.jaccard == 1 and row.tokens == 5
    assert row.first_divergence is None and row.logit_gap is None and row.gap_tolerance is None


def test_in_fp32_other_ids_or_other_kept_tokens_fail() -> None:
    row = judge(taken(1, 0.03), "fp32")
    assert not row.passed and row.first_divergence == 1 and row.gap_tolerance is None
    assert row.logit_gap == pytest.approx(1.0)
    row = judge(THEIRS, "fp32", [np.array([[1, 4], [2, 7]])])
    assert not row.passed and row.equal and row.jaccard == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize(("precision", "limit"), [("fp16", HALF_GAP), ("int8", QUANTIZED_GAP)])
def test_a_near_tie_passes_and_a_wrong_token_fails(precision: str, limit: float) -> None:
    near, far = (judge(taken(2, factor * limit), precision) for factor in (0.8, 1.2))
    assert near.passed and not near.equal and near.first_divergence == 2 and not near.note
    assert near.gap_tolerance == pytest.approx(limit * SPREAD)
    assert not far.passed and "far from right" in far.note
    assert far.logit_gap is not None and far.gap_tolerance is not None and far.logit_gap > far.gap_tolerance


def test_fp16_may_differ_more_where_it_kept_other_tokens() -> None:
    ids = taken(0, 2 * HALF_GAP)
    assert not judge(ids, "fp16").passed
    assert judge(ids, "fp16", [np.array([[1, 4], [2, 7]])]).passed


@pytest.mark.parametrize(
    ("token_ids", "note"),
    [
        ([], "ends after 0 tokens, eager PyTorch's after 5"),
        (THEIRS[:3], "ends after 3 tokens"),
        ([*THEIRS, 8], "ends after 6 tokens"),
        ([3, 5, 100, 1, 1], "token 100 is not in the vocabulary"),
        ([99] * 5, "one token over and over"),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_degenerate_answer_fails(token_ids: list[int], note: str, precision: str) -> None:
    row = judge(token_ids, precision)  # 99 is the second best of the first token: no gap worth the name
    assert not row.passed and note in row.note


def test_what_loops_in_the_reference_may_loop() -> None:
    looping = EndToEndCase("text", {}, [], [], [3] * 5, np.stack([logits(3)] * 5), [])
    assert judge_answer(looping, [99] * 5, [], "int8").passed
