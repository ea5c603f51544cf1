"""A stage that gives nothing to compare is a row that failed, without numbers that look like some."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rediprune.export.validate.cases import StageCase, StageInput
from rediprune.export.validate.stage_comparison import NOISE_FACTOR, compare_stage
from rediprune.export.validate.validation_report import ValidationReport
from rediprune.runtime.bundle import Bundle, Fidelity
from rediprune.runtime.bundle.calibration_record import CalibrationSpec

NUMBERS = ("max_abs", "max_rel", "cosine", "relative_error", "noise", "tolerance")


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Bundle:
    return Bundle.open(bundle_of("llava"))


@pytest.fixture
def case(bundle: Bundle) -> StageCase:
    """The `embed` stage over two tokens, with what it gives."""
    (row,) = compare_stage(bundle, "ort", "embed", [_case(np.array([[1, 2]]), np.zeros(0, np.float32))])
    assert not row.passed and "shape (1, 2, 64), eager has (0,)" in row.note
    from rediprune.runtime.backends.session import open_stage

    embeds = np.asarray(open_stage("ort", bundle, "embed", 1).run({"input_ids": np.array([[1, 2]])})["embeds"])
    return _case(np.array([[1, 2]]), embeds)


def _case(ids: np.ndarray, embeds: np.ndarray) -> StageCase:
    return StageCase(StageInput("two", {"input_ids": ids}, real=True), {"embeds": embeds}, {"embeds": embeds * 1.0})


def test_equal_outputs_pass_and_errors_are_measured(bundle: Bundle, case: StageCase) -> None:
    (row,) = compare_stage(bundle, "ort", "embed", [case])
    assert row.passed and (row.max_abs, row.max_rel, row.relative_error, row.noise) == (0, 0, 0, 0)
    assert row.cosine == pytest.approx(1) and row.judged_by == "max_abs"
    assert row.tolerance == pytest.approx(NOISE_FACTOR * 2**-23 * np.abs(case.expected["embeds"]).max())

    off = case.expected["embeds"].copy()
    off[0, 0, 0] += 0.25
    (row,) = compare_stage(bundle, "ort", "embed", [replace(case, expected={"embeds": off}, noisy={"embeds": off})])
    assert not row.passed and row.max_abs == pytest.approx(0.25) and not row.note
    assert row.max_rel == pytest.approx(0.25 / abs(float(off[0, 0, 0])))
    assert row.relative_error == pytest.approx(0.25 / float(np.linalg.norm(off.astype(np.float64))))
    (row,) = compare_stage(bundle, "ort", "embed", [replace(case, expected={"embeds": off})])
    assert row.passed and row.noise == pytest.approx(0.25)  # an eager run is as far off


@pytest.mark.parametrize("recipe", [{}, {"embed": "int8"}])
def test_where_there_is_nothing_to_compare_no_number_is_given(
    bundle: Bundle, case: StageCase, recipe: dict[str, str]
) -> None:
    bundle.manifest.calibration = CalibrationSpec(
        source="a", source_digest="b", source_precision="fp32", options=[], recipe=recipe, fidelity={}
    )
    missing = replace(case, expected={"nothing": case.expected["embeds"]}, noisy={"nothing": case.expected["embeds"]})
    beyond = replace(case, input=StageInput("beyond", {"input_ids": np.array([[10**6]])}))
    rows = [row for one in (missing, beyond) for row in compare_stage(bundle, "ort", "embed", [one])]
    for row, note in zip(rows, ("no output 'nothing'", "does not run"), strict=True):
        assert not row.passed and note in row.note
        assert all(getattr(row, name) is None for name in NUMBERS)
    report = ValidationReport("b", "ort", "fp32", stages=rows)
    assert json.loads(json.dumps(report.document(), allow_nan=False))["failing_stages"] == ["embed"]


@pytest.mark.parametrize(
    ("error", "real", "tolerance"), [(0.01, True, 0.03), (0.001, True, 0.003), (0.001, False, None), (None, True, None)]
)
def test_a_quantised_stage_is_held_to_what_was_measured_of_it(
    bundle: Bundle, case: StageCase, error: float | None, real: bool, tolerance: float | None
) -> None:
    fidelity = {"embed": None if error is None else Fidelity(cosine=1.0, relative_error=error)}
    bundle.manifest.calibration = CalibrationSpec(
        source="a",
        source_digest="b",
        source_precision="fp32",
        options=[],
        recipe={"embed": "int8"},
        fidelity=fidelity,
    )
    off = {"embeds": case.expected["embeds"] * np.float32(1 / 1.02)}  # 2 % off
    (row,) = compare_stage(bundle, "ort", "embed", [replace(case, input=replace(case.input, real=real), expected=off)])
    assert row.relative_error == pytest.approx(0.02, rel=1e-3)
    assert row.judged_by == "relative_error" and row.tolerance == (tolerance and pytest.approx(tolerance))
    assert row.passed == (tolerance is None or tolerance > 0.02)
