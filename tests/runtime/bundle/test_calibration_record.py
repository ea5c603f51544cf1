"""What a calibrated bundle says of itself: a recorded tolerance is of one backend, and capped."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.bundle import CalibrationSpec, Fidelity, Manifest
from rediprune.runtime.bundle.calibration_record import LARGEST_TOLERANCE, TOLERANCE_FACTOR


def record(**fidelity: float | None) -> CalibrationSpec:
    return CalibrationSpec(
        source="bundles/fp32",
        source_digest="",
        source_precision="fp32",
        options=[],
        recipe=dict.fromkeys(fidelity, "int8"),
        fidelity={
            name: None if error is None else Fidelity(cosine=1.0, relative_error=error)
            for name, error in fidelity.items()
        },
    )


def test_a_tolerance_is_of_the_backend_that_was_measured() -> None:
    made = record(vision=0.01).with_tolerances("ort", {"vision": 0.02}).with_tolerances("openvino", {"vision": 0.03})
    assert made.tolerance("ort", "vision") == 0.02
    assert made.tolerance("openvino", "vision") == 0.03
    assert made.tolerance("tensorrt", "vision") is None and made.tolerance("ort", "project") is None
    assert made.with_tolerances("ort", {}).tolerance("ort", "vision") is None  # measured anew, and not of this stage


@given(st.floats(0, 10), st.one_of(st.none(), st.floats(0, 2)))
def test_a_tolerance_is_capped_when_it_is_noted_and_when_it_is_read(measured: float, error: float | None) -> None:
    plain = record(vision=error)
    cap = LARGEST_TOLERANCE if error is None else min(LARGEST_TOLERANCE, TOLERANCE_FACTOR * error)
    assert plain.with_tolerances("ort", {"vision": measured}).tolerances["ort"]["vision"] == min(measured, cap)
    for written in ({"tolerances": {"ort": {"vision": measured}}}, {"floors": {"vision": measured}}):
        read = plain.model_copy(update=written)
        assert read.tolerance("ort", "vision") == min(measured, cap)


def test_what_earlier_versions_noted_counts_until_it_is_measured_anew() -> None:
    document = json.loads((Path(__file__).parent / "data" / "schema1_calibrated.json").read_text())
    made = Manifest.model_validate(document).calibration
    assert made is not None and made.floors is not None
    assert made.tolerance("ort", "vision") == made.tolerance("openvino", "vision") == made.floors["vision"] == 0.0174
    anew = made.with_tolerances("ort", {"vision": 0.015})
    assert anew.tolerance("ort", "vision") == 0.015 and anew.tolerance("openvino", "vision") is None


def test_a_stage_whose_output_is_gone_is_beyond_every_tolerance() -> None:
    nought = 1.0  # relative error of zeros
    assert record(vision=None).with_tolerances("ort", {"vision": 1.5 * nought}).tolerance("ort", "vision") < nought
    assert nought / 2 >= LARGEST_TOLERANCE
