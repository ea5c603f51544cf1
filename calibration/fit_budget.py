"""Quantising the stages of a bundle, all of them or as many layers as a budget allows."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..runtime.bundle import Sensitivity
from .budget import ERROR, Budget
from .evaluation.accuracy_loss import AccuracyLoss
from .quantization_run import QuantizationRun

MeasureSensitivities = Callable[[list[str]], list[Sensitivity]]  # of the layer groups of these stages


def quantise_stages(run: QuantizationRun, fit: Callable[[str], None] = lambda stage: None) -> None:
    """Make every stage of the plan's bundle; what an interrupted run finished is taken over.

    Args:
        run: where they are made.
        fit: called after a stage is quantised and before it is finished, with its name.
    """
    for stage in run.plan.baseline.manifest.stages:
        if stage not in run.plan.schemes:
            run.copy(stage)
            continue
        if not run.resume(stage):
            run.quantise(stage)
            fit(stage)
            run.finish(stage)
        run.report(stage, "done", 1.0)


def fit_error_budget(run: QuantizationRun, budget: Budget, sensitivities: MeasureSensitivities) -> dict[str, float]:
    """Quantise as many layers of every stage as a budget of error allows; each stage is bounded by itself.

    Returns:
        Stage → the relative error that was measured of it as it is now.
    """

    def fit(stage: str) -> None:
        if run.error(stage) > budget.limit:
            run.exclude_layers(sensitivities([stage]), budget, partial(run.error, stage))

    quantise_stages(run, fit)
    return {stage: run.error(stage) for stage in run.fidelity}


def fit_accuracy_budget(
    run: QuantizationRun,
    budget: Budget,
    sensitivities: MeasureSensitivities,
    loss: AccuracyLoss,
    write: Callable[[], Path],
) -> dict[str, float]:
    """Quantise as many layers of the whole bundle as a budget of accuracy allows.

    Args:
        run: where the stages are made.
        budget: of accuracy.
        sensitivities: measures those of the layer groups of given stages.
        loss: measures the points that a bundle loses.
        write: writes the bundle as it is and gives its folder.

    Returns:
        Keep ratio → points lost that were measured of the bundle as it is now; negative where it gains.
    """
    quantise_stages(run)
    for stage in run.plan.schemes:  # an interrupted run may have left layers out; the choice is made again
        run.quantise(stage)
    run.sensitivities = []
    if loss.worst(write()) > budget.limit:
        run.exclude_layers(sensitivities(list(run.plan.schemes)), budget, lambda: loss.worst(write()))
    for stage in run.plan.schemes:
        run.finish(stage)
    return loss.points(write())


def says_impossible(budget: Budget | None, sensitivities: Sequence[Sensitivity]) -> str:
    """That nothing is left quantised, and what the last layer group that was tried costs alone."""
    if budget is None or not sensitivities:
        return "no layer is left to quantise; give fewer --skip"
    last = {one.stage: one for one in sensitivities}.values() if budget.kind == ERROR else sensitivities[-1:]
    least = min(last, key=lambda one: one.error)
    return (
        f"no layer can be quantised within {budget}: '{least.stage}/{least.unit}' alone loses more (its error is "
        f"{least.error:.2g}); allow more, or choose another scheme with --recipe"
    )
