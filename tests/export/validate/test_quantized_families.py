"""Quantised bundles of the families: every stage within the error that was recorded of it; in int8 answers of the same tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.calibration.calibrate import calibrate
from rediprune.calibration.settings import CalibrationSettings
from rediprune.export.validate.validate import validate

FAMILIES = ["llava_next", "llava_onevision", "internvl", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_stages_are_within_their_recorded_error(
    name: str, recipe: str, bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = calibrate(bundle_of(name), tmp_path / "made", CalibrationSettings(recipe=recipe, samples=24))
    record = bundle.manifest.calibration
    assert record is not None and not any(record.skipped.values())  # every product of every stage was found
    # Of random weights int4 leaves too little for whole answers: a decoder of this width is off by half.
    report = validate(bundle.folder, "ort", end_to_end=recipe == "int8")
    assert all(row.passed for row in report.stages), [row for row in report.stages if not row.passed]
    # Where rounded features keep another token, a random model's answer may be any.
    alike = [row for row in report.end_to_end if row.jaccard == 1]
    assert all(row.passed for row in alike), [row for row in alike if not row.passed]
    for stage, largest in {"vision": 0.08, "project": 0.08, "language": 0.25}.items():
        fidelity = record.fidelity[stage]
        assert fidelity is not None
        if recipe == "int8" or stage != "language":
            assert fidelity.relative_error < largest, stage
