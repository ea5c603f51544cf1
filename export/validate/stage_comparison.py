"""A stage of a bundle beside eager PyTorch, on the same inputs.

Breakage must stand out from rounding. A stage in fp32 or fp16 is held to the noise of an eager run in its own
precision; a quantised one to the error that was measured when it was calibrated; indices must be equal.
Tolerances of whole answers are in `end_to_end_comparison`, caps on recorded ones in `runtime.bundle.calibration_record`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...calibration.evaluation.similarity import nearness, stage_runner
from ...runtime.bundle import Bundle, CalibrationSpec
from ...runtime.errors import RedipruneError
from .cases import StageCase

# A stage may be this many times as far from float32 as an eager run of its precision is: backends sum in another
# order, none of them loses digits. A broken weight or dimension is off by orders of magnitude.
NOISE_FACTOR = 6.0
# A quantised stage may be this many times as far from float32, in relative error, as it was from its source on the
# samples held out when it was calibrated: another picture is another error, a broken stage is off by orders.
FIDELITY_FACTOR = 3.0


@dataclass(frozen=True)
class StageRow:
    """One output of a stage over one input. Numbers are None where there was nothing to compare; `note` says why.

    Attributes:
        stage, case, output: where it is: the stage, the input's label, the output's name.
        passed: within tolerance.
        max_abs: largest |difference|.
        max_rel: largest |difference| / |expected|, over elements that are not 0.
        cosine: of both outputs as one vector each.
        relative_error: ‖difference‖ / ‖expected‖.
        noise: largest |difference| of an eager run in the bundle's precision.
        tolerance: the largest value of `judged_by` that passes; None where it is not judged.
        judged_by: "max_abs", or "relative_error" of a quantised stage.
        note: what is wrong, in words.
    """

    stage: str
    case: str
    output: str
    passed: bool
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    relative_error: float | None = None
    noise: float | None = None
    tolerance: float | None = None
    judged_by: str = "max_abs"
    note: str = ""


def compare_stage(
    bundle: Bundle, backend: str, stage: str, cases: Sequence[StageCase], threads: int = 0
) -> list[StageRow]:
    """Run a stage over its cases; one row for each case and output.

    Args:
        bundle: the bundle.
        backend: what runs the stage.
        stage: its name.
        cases: inputs, and what eager PyTorch gives for them.
        threads: of the backend; 0 leaves it to it.

    Raises:
        RedipruneError: the backend cannot be used here. A stage that is opened and fails is a row that did not pass.
    """
    try:
        run = stage_runner(backend, bundle, stage, threads)
        outputs = [{name: np.asarray(array) for name, array in run(case.input.feed).items()} for case in cases]
    except RedipruneError:
        raise
    except Exception as error:
        return [StageRow(stage, "all", "", False, note=f"does not run: {str(error).splitlines()[0]}")]
    record = bundle.manifest.calibration
    rows = []
    for case, ours in zip(cases, outputs, strict=True):
        for name in case.expected:
            row = _compare_output(stage, case, name, ours.get(name))
            if record is not None and stage in record.recipe and row.relative_error is not None:
                row = _judge_quantized(row, record, backend, case.input.real)
            rows.append(row)
    return rows


def _compare_output(stage: str, case: StageCase, name: str, ours: np.ndarray | None) -> StageRow:
    expected, noisy = case.expected[name], case.noisy[name]
    row = StageRow(stage, case.input.label, name, False)
    if ours is None:
        return replace(row, note=f"there is no output '{name}'")
    if ours.shape != expected.shape:
        return replace(row, note=f"output '{name}' has shape {ours.shape}, eager has {expected.shape}")
    if expected.dtype.kind in "iu":
        differ = int((ours != expected).sum())
        note = f"{differ} of {ours.size} indices differ" if differ else ""
        return replace(row, passed=not differ, note=note)
    if not np.isfinite(ours).all():
        return replace(row, note=f"output '{name}' is not finite")
    exact = expected.astype(np.float64)
    difference, size = np.abs(ours.astype(np.float64) - exact), np.abs(exact)
    noise = float(np.abs(noisy.astype(np.float64) - exact).max())
    # Rounding the result itself is allowed: a stage that only copies has no noise of its own.
    unit = float(np.finfo(np.float32 if noisy.dtype == np.float64 else noisy.dtype).eps)
    tolerance = NOISE_FACTOR * max(noise, unit * float(size.max()))
    near = nearness(ours, expected)
    return replace(
        row,
        passed=float(difference.max()) <= tolerance,
        max_abs=float(difference.max()),
        max_rel=float((difference[size > 0] / size[size > 0]).max(initial=0.0)),
        cosine=near.cosine,
        relative_error=near.relative_error,
        noise=noise,
        tolerance=tolerance,
    )


def _judge_quantized(row: StageRow, record: CalibrationSpec, backend: str, real: bool) -> StageRow:
    """Hold a quantised stage to what was measured of it: rounding to a few bits is no fault, more than that is one.

    That is what `rediprune report` recorded for this backend, within its cap (`CalibrationSpec.tolerance`); without it, the
    error of calibration.
    """
    measured = record.fidelity.get(row.stage)
    tolerance = record.tolerance(backend, row.stage)
    if tolerance is None and measured is not None:
        tolerance = FIDELITY_FACTOR * measured.relative_error
    if not real:  # ranges are taken from real inputs
        tolerance = None
    assert row.relative_error is not None
    passed = tolerance is None or row.relative_error <= tolerance
    return replace(row, passed=passed, tolerance=tolerance, judged_by="relative_error")
