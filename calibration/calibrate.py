"""Bundle → bundle: the same model with the linear layers of its stages quantised.

Made beside its place (`runtime.bundle.staging`), stage by stage; the baseline is only read.
"""

from importlib.metadata import version
from pathlib import Path

from ..runtime.bundle import Bundle, CalibrationSpec, Manifest, Sensitivity
from ..runtime.bundle.lock import making
from ..runtime.bundle.staging import Staging, check_room, check_target
from ..runtime.errors import RedipruneError
from .budget import ERROR
from .data import Data
from .evaluation.accuracy_loss import AccuracyLoss, select_questions
from .fit_budget import fit_accuracy_budget, fit_error_budget, quantise_stages, says_impossible
from .observations import cache_folder, observe, read_data
from .plan import CalibrationPlan, plan_calibration
from .progress_types import StageProgress, ignore_stage
from .quantization_run import QuantizationRun
from .quantize.precision_recipes import limits_of
from .sensitivity import measure_sensitivities
from .settings import CalibrationSettings

_TOOLS = ("rediprune", "onnx-ir", "onnxruntime", "numpy")
# What of a calibration record was asked for and given; the rest is what came of it.
_GIVEN = {"source", "source_digest", "source_precision", "options", "data", "ranges", "tools", "budget"}


def calibrate(
    source: str | Path,
    folder: str | Path,
    settings: CalibrationSettings | str = "int8",
    *,
    backend: str | None = None,
    force: bool = False,
    progress: StageProgress | None = None,
) -> Bundle:
    """Make a quantised bundle of one in fp32 or fp16.

    Args:
        source: the baseline, the bundle to make it of. It is not changed.
        folder: the bundle to make. An up-to-date one there is left as it is.
        settings: what to make; a text is a recipe, all else by default.
        backend: what the bundle is meant for; refused here if it does not take the recipe.
        force: redo everything but the observation of activations.
        progress: told what is being done.

    Returns:
        The bundle, opened.

    Raises:
        RedipruneError: a baseline that is calibrated already, a recipe or setting that does not fit, bad data, a budget
            that no quantised layer meets.
    """
    settings = CalibrationSettings(recipe=settings) if isinstance(settings, str) else settings
    report = progress or ignore_stage
    plan = plan_calibration(Bundle.open(source), settings)
    plan.check_backend(backend)
    target = check_target(folder)
    if target == plan.baseline.folder.resolve():
        raise RedipruneError(f"'{folder}' is the bundle to calibrate, which stays as it is; give -o another folder")
    with making(target):
        cache = cache_folder(plan.baseline, target)
        runs = plan.can_run(plan.needs_activations if settings.budget is None else list(plan.schemes))
        data = read_data(plan, cache, report) if runs else None
        given = _given(plan, data)
        if not force and (current := _up_to_date(target, given)) is not None:
            return current
        staging = Staging(target, given.model_dump(include=_GIVEN), force)
        check_room(staging.folder, _size(plan.baseline))
        run, measured = _make(plan, data, given, staging, cache, force, report)
        if not run.fidelity:
            raise RedipruneError(says_impossible(settings.budget, run.sensitivities))
        staging.publish(run.write(_manifest(run, given, measured)).manifest)
    return Bundle.open(target)


def _make(
    plan: CalibrationPlan,
    data: Data | None,
    given: CalibrationSpec,
    staging: Staging,
    cache: Path,
    force: bool,
    report: StageProgress,
) -> tuple[QuantizationRun, dict[str, float]]:
    """Quantise all stages, within the budget if there is one; the run, and what was measured of the budget."""
    budget = plan.settings.budget
    if data is None:  # the baseline does not fit into memory, and the recipe needs no samples
        run = QuantizationRun(plan, {}, staging, report)
        quantise_stages(run)
        return run, {}
    observations = observe(plan, data, cache, report)
    run = QuantizationRun(plan, observations.statistics, staging, report)

    def sensitivities(stages: list[str]) -> list[Sensitivity]:
        return measure_sensitivities(plan, observations, stages, force=force, progress=report)

    if budget is None:
        quantise_stages(run)
        return run, {}
    if budget.kind == ERROR:
        return run, fit_error_budget(run, budget, sensitivities)
    questions = select_questions(plan.settings, "video" in plan.baseline.manifest.modalities, cache)
    loss = AccuracyLoss(
        plan.baseline.folder,
        questions,
        cache / "replies.jsonl",
        lambda what, number, total: report("questions", what, number / total),
    )
    return run, fit_accuracy_budget(
        run, budget, sensitivities, loss, lambda: run.write(_manifest(run, given, {})).folder
    )


def _given(plan: CalibrationPlan, data: Data | None) -> CalibrationSpec:
    """The record of what was asked for and given; what came of it is still to be filled in."""
    baseline = plan.baseline
    return CalibrationSpec(
        source=str(baseline.folder.resolve()),
        source_digest=baseline.manifest.digest,
        source_precision=baseline.manifest.precision,
        options=plan.settings.argv(),
        recipe=plan.schemes,
        data={} if data is None else {"name": data.name, "sha256": data.sha256, "samples": len(data.samples)},
        ranges=plan.settings.ranges,
        tools={name: version(name) for name in _TOOLS},
        budget="" if plan.settings.budget is None else str(plan.settings.budget),
    )


def _manifest(run: QuantizationRun, given: CalibrationSpec, measured: dict[str, float]) -> Manifest:
    """The manifest of the bundle as it now is, but for its stages."""
    recipe = {stage: scheme for stage, scheme in run.plan.schemes.items() if stage in run.fidelity}
    record = given.model_copy(
        update={
            "recipe": recipe,
            "limits": limits_of(recipe),
            "fidelity": run.fidelity,
            "skipped": {stage: layers for stage, layers in run.excluded.items() if layers},
            "sensitivity": run.sensitivities,
            "measured": measured,
        }
    )
    changes = {
        "tool_version": version("rediprune"),
        "precision": run.plan.settings.recipe,
        "engines": {},
        "plan": None,
        "auto_keep": None,  # of the baseline's features
        "calibration": record,
    }
    return run.plan.baseline.manifest.model_copy(update=changes)


def _size(bundle: Bundle) -> int:
    """Bytes of a bundle's files."""
    return sum(bundle.path(file).stat().st_size for file in bundle.expected_files())


def _up_to_date(folder: Path, given: CalibrationSpec) -> Bundle | None:
    """The bundle in `folder`, if it is whole and was made of the same in the same way."""
    try:
        bundle = Bundle.open(folder, remember=False)
    except RedipruneError:
        return None
    made = bundle.manifest.calibration
    same = made is not None and made.model_dump(include=_GIVEN) == given.model_dump(include=_GIVEN)
    return bundle if same else None
