"""A whole answer of a bundle beside eager PyTorch's.

In fp32 the same tokens must be kept and the same ids answered. In lower precision an answer may part from the
reference's where that was nearly undecided, and not elsewhere: the token taken must be one that the reference, given
the same words before it, takes to be nearly as good as its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ...calibration.evaluation.scores import tokens_alike
from ...calibration.evaluation.similarity import jaccard
from ...runtime.pipeline import Pipeline
from ...runtime.visual_tokens import Kept
from .cases import QUESTION, EndToEndCase

# How far below the reference's own token the token taken instead may lie, in standard deviations of the reference's
# logits at that place. Measured on right bundles of the demo checkpoint and of random weights: at most 0.2 in int8 and
# 1.0 in int4, nothing in fp16; a token drawn at random lies about 3 below.
HALF_GAP = 0.25  # fp16, the same tokens kept
QUANTIZED_GAP = 1.5  # quantised, or other tokens kept
_LOOP = 4  # an answer this long that is one token throughout is no answer, unless the reference's is one too


@dataclass(frozen=True)
class EndToEndRow:
    """A request end to end.

    Attributes:
        case: the request's label.
        tokens: of the answer.
        equal: the ids are the reference's.
        first_divergence: at which token they part; None where they are equal, or one ends where the other goes on.
        logit_gap: there, how much the reference prefers its own token.
        gap_tolerance: the largest gap that passes; None in fp32, where none does.
        jaccard: overlap of the kept sets, 0 … 1.
        passed: equal in fp32; in lower precision no worse than its rounding.
        note: what is wrong, in words.
    """

    case: str
    tokens: int
    equal: bool
    first_divergence: int | None
    logit_gap: float | None
    gap_tolerance: float | None
    jaccard: float
    passed: bool
    note: str = ""


def compare_request(pipeline: Pipeline, case: EndToEndCase, precision: str) -> EndToEndRow:
    """Answer a request and compare the answer with the reference's; see `judge_answer`."""
    answer = pipeline.generate(QUESTION, case.images, case.videos, temperature=0.0, **case.options)
    return judge_answer(case, answer.token_ids, answer.kept, precision)


def judge_answer(case: EndToEndCase, token_ids: Sequence[int], kept: Sequence[Kept], precision: str) -> EndToEndRow:
    """Compare an answer with the reference's.

    Args:
        case: the request and the reference's answer.
        token_ids: the answer.
        kept: of each picture and video [F, K], or the indices of each frame.
        precision: the bundle's, as the manifest has it: "fp32", "fp16" or that of a calibrated bundle.
    """
    ours, theirs = list(token_ids), case.token_ids
    alike, equal = tokens_alike(ours, theirs), ours == theirs
    overlap = jaccard(chain(*kept), chain(*case.kept)) if case.kept else 1.0
    row = EndToEndRow(case.label, len(ours), equal, None, None, None, overlap, equal)
    if precision == "fp32":
        row = replace(row, passed=equal and overlap == 1.0)
    if equal:
        return row
    if alike == min(len(ours), len(theirs)):
        return replace(row, note=f"ends after {len(ours)} tokens, eager PyTorch's after {len(theirs)}")
    row, logits = replace(row, first_divergence=alike), case.logits[alike]
    if ours[alike] >= len(logits):
        return replace(row, note=f"token {ours[alike]} is not in the vocabulary")
    gap = float(logits[theirs[alike]] - logits[ours[alike]])
    row = replace(row, logit_gap=gap)
    if precision == "fp32":
        return row
    deviations = HALF_GAP if precision == "fp16" and overlap == 1.0 else QUANTIZED_GAP
    tolerance = deviations * float(logits.astype(np.float64).std())
    row = replace(row, gap_tolerance=tolerance)
    if gap > tolerance:
        return replace(row, note="a token that eager PyTorch takes to be far from right")
    if len(ours) >= _LOOP and len(set(ours)) == 1 and len(set(theirs)) > 1:
        return replace(row, note="one token over and over")
    return replace(row, passed=True)
