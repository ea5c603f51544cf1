"""Checkpoint or bundle → the best bundle for this machine, with its plan in the manifest."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...calibration.budget import ACCURACY
from ...calibration.calibrate import calibrate
from ...calibration.evaluation.accuracy_loss import AccuracyLoss, NothingToLoseError, select_questions
from ...calibration.observations import Observations, cache_folder, observe, read_data
from ...calibration.plan import plan_calibration
from ...calibration.settings import CalibrationSettings
from ...runtime.backend_choice import AUTO
from ...runtime.bundle import MANIFEST, Bundle, PlanRecord, TriedForm
from ...runtime.bundle.lock import changing
from ...runtime.bundle.staging import check_target
from ...runtime.errors import RedipruneError
from ...runtime.machine import fingerprint
from ..build.cpu_engines import BACKENDS as CPU_BACKENDS
from ..build.cpu_engines import build_cpu
from ..build.libraries import library_of
from ..build.tensorrt_engines import build_tensorrt
from ..checkpoint.reader import Checkpoint
from ..exporter import Progress, export_bundle
from ..validate.validate import validate
from .candidates import candidates, recipes, towers_of
from .choose import Mix, changed_stages, ranked_mixes, rejection, size_of
from .copy_bundle import copy_bundle
from .first_token import first_token_seconds
from .gpu_forms import ENGINES, build_engines
from .optimize_settings import OptimizeSettings
from .stage_timing import Timed, time_candidates

EQUAL = "equal to eager PyTorch within tolerance"  # of the outcome: 1 or 0
_TRIES = 4  # mixes whose accuracy is asked before it is given up
_PROBE = 20  # questions that show whether a checkpoint can answer any


@dataclass(frozen=True)
class Optimized:
    """What came of it.

    Attributes:
        bundle: the one that was made, its plan in the manifest.
        source: the bundle that it was made of.
        notes: what a user should know, in sentences.
    """

    bundle: Bundle
    source: Bundle
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether the whole chain is equal to eager PyTorch within tolerance."""
        return self.plan.outcome[EQUAL] == 1

    @property
    def plan(self) -> PlanRecord:
        assert self.bundle.manifest.plan is not None
        return self.bundle.manifest.plan


def optimize(
    source: str | Path,
    folder: str | Path,
    settings: OptimizeSettings | None = None,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Optimized:
    """Make the best bundle for this machine.

    Forms of the towers and the decoder are made beside `folder`, timed on every backend that can run here, held to the
    budget, and mixed; the whole chain is then compared with eager PyTorch. What was made is kept until the bundle is done,
    so that an interrupted run goes on.

    Args:
        source: a checkpoint (folder or hub id), exported to `<folder>-fp32`, or a bundle in fp32.
        folder: the bundle to make.
        settings: budget, target and bounds.
        revision: of a hub id.
        progress: called with what is being done.

    Raises:
        RedipruneError: an unusable source or setting, a budget that nothing meets; nothing is left in `folder`'s place
            that was not there before.
    """
    settings, report = settings or OptimizeSettings(), progress or (lambda stage, what, fraction: None)
    target = check_target(folder)
    baseline = _baseline(source, revision, target, report)
    work = target.parent / f".{target.name}.candidates"
    made = _make_forms(baseline, work, settings, report)
    observations = _observe(baseline, work, settings, report)
    cases = {name: seen.held_out for name, seen in observations.statistics.items()}
    keep = settings.keep or baseline.manifest.defaults.keep
    timed = time_candidates(candidates(baseline, made), cases, keep, settings.threads, report)
    mixes = ranked_mixes(timed, settings, baseline.manifest.precision)

    def make(mix: Mix, place: Path) -> PlanRecord:
        """Make the bundle of a mix with its plan, so that `auto` runs each stage on what was measured."""
        _make(mix, baseline, place, settings, report)
        plan = _plan(mix, timed, settings, baseline.manifest.precision)
        _note(place, plan)
        return plan

    chosen, outcome, notes = _within_accuracy(mixes, baseline, work, settings, make, report)
    plan = make(chosen, target)
    outcome |= _check(target, baseline, keep, settings, notes, report)
    _note(target, plan.model_copy(update={"outcome": outcome}))
    shutil.rmtree(work, ignore_errors=True)
    return Optimized(Bundle.open(target), baseline, notes)


def _baseline(source: str | Path, revision: str | None, target: Path, report: Progress) -> Bundle:
    """The fp32 bundle that all forms are made of, built for ONNX Runtime."""
    folder = Path(source)
    if (folder / MANIFEST).is_file():
        if folder.resolve() == target:
            raise RedipruneError(f"'{folder}' is the bundle to optimise, which is not replaced; give -o another folder")
        bundle = Bundle.open(folder)
        bundle.check_complete()
        if bundle.manifest.calibration is not None:
            raise RedipruneError(
                f"'{folder}' is quantised already; optimise the bundle it was made of, {bundle.manifest.calibration.source}"
            )
    else:
        folder = target.with_name(f"{target.name}-fp32")
        bundle = export_bundle(Checkpoint.open(str(source), revision), folder, progress=report)
    if bundle.manifest.precision != "fp32":
        raise RedipruneError(
            f"'{folder}' is in {bundle.manifest.precision}, which no form can be made of; export it in fp32"
        )
    if "ort" not in bundle.manifest.engines:
        build_cpu(folder, "ort", report)
    build_engines(folder, report)
    return Bundle.open(folder)


def _make_forms(baseline: Bundle, work: Path, settings: OptimizeSettings, report: Progress) -> list[Bundle]:
    """Bundles that together have every form of every stage; none where the budget is exact."""
    made: list[Bundle] = []
    wanted = [] if settings.bound is None else list(recipes(baseline))
    for at, recipe in enumerate(wanted):
        report("forms", recipe, at / len(wanted))
        folder = work / str(at)
        calibrate(baseline.folder, folder, _calibration(recipe, settings))
        build_cpu(folder, "ort")
        build_engines(folder, report)
        made.append(Bundle.open(folder))
    report("forms", "done", 1.0)
    return made


def _calibration(recipe: str, settings: OptimizeSettings) -> CalibrationSettings:
    """How forms are made. INT4 is rounded to the nearest: GPTQ takes minutes and gigabytes at real geometry."""
    return CalibrationSettings(recipe, data=settings.data, samples=settings.samples, gptq=False)


def _observe(baseline: Bundle, work: Path, settings: OptimizeSettings, report: Progress) -> Observations:
    """What the baseline got and gave on held-out samples."""
    recipe = ",".join(f"{stage}=int8-weights" for stage in (*towers_of(baseline), "language"))
    calibration = CalibrationSettings(recipe, data=settings.data, samples=settings.samples if settings.bound else 1)
    plan = plan_calibration(baseline, calibration)
    cache = cache_folder(baseline, work / "0")
    cache.mkdir(parents=True, exist_ok=True)
    return observe(plan, read_data(plan, cache, report), cache, report)


def _within_accuracy(
    mixes: Sequence[Mix],
    baseline: Bundle,
    work: Path,
    settings: OptimizeSettings,
    make: Callable[[Mix, Path], object],
    report: Progress,
) -> tuple[Mix, dict[str, float], list[str]]:
    """The first mix that loses no more accuracy than the budget allows; what was measured of it, and notes.

    Raises:
        RedipruneError: none of those tried does.
    """
    if settings.bound is None or settings.bound.kind != ACCURACY:
        return mixes[0], {}, []
    calibration = CalibrationSettings(data=settings.data, samples=settings.samples, questions=settings.questions)
    questions = select_questions(calibration, "video" in baseline.manifest.modalities, work)
    replies = work / "replies.jsonl"

    def asked(what: str, number: int, total: int) -> None:
        report("accuracy", what, number / max(total, 1))

    try:
        AccuracyLoss(baseline.folder, questions[:_PROBE], replies, asked, AUTO)
        loss = AccuracyLoss(baseline.folder, questions, replies, asked, AUTO)
    except NothingToLoseError:
        note = (
            f"'{baseline.folder.name}' answers none of {_PROBE} questions right, so accuracy says nothing of it: its stages are "
            f"held to an error of {settings.largest_error:.0%} each; give questions that it can answer with --data"
        )
        return mixes[0], {}, [note]
    worst: dict[str, float] = {}
    for mix in mixes[:_TRIES]:
        if not changed_stages(mix.recipe, baseline.manifest.precision):
            return mix, {}, []
        folder = work / "mix"
        make(mix, folder)
        points = loss.points(folder)
        if max(points.values()) <= settings.bound.limit:
            report("accuracy", "within the budget", 1.0)
            return mix, {f"points of accuracy lost at keep {kept}": lost for kept, lost in points.items()}, []
        worst[str(mix)] = max(points.values())
    name = min(worst, key=lambda mix: worst[mix])
    raise RedipruneError(
        f"none of the {len(worst)} best mixes is within {settings.budget}: {name} comes nearest and loses "
        f"{worst[name]:.2f} points; allow more, or ask for --budget error=…"
    )


def _make(mix: Mix, baseline: Bundle, folder: Path, settings: OptimizeSettings, report: Progress) -> None:
    """The bundle of a mix, built for the backends it runs on."""
    recipe = changed_stages(mix.recipe, baseline.manifest.precision)
    report("bundle", f"making {folder.name}", 0.0)
    if recipe:
        text = ",".join(f"{stage}={form}" for stage, form in recipe.items())
        calibrate(baseline.folder, folder, _calibration(text, settings))
    else:
        copy_bundle(baseline, folder)
    for backend in dict.fromkeys(["ort", *(name.removesuffix("-bf16") for name in mix.backends.values())]):
        if backend in CPU_BACKENDS:
            build_cpu(folder, backend)
        elif backend in ENGINES:
            build_tensorrt(folder, backend)
    report("bundle", "made", 1.0)


def _plan(mix: Mix, timed: Sequence[Timed], settings: OptimizeSettings, precision: str) -> PlanRecord:
    parts = {id(part) for part in mix.parts}
    tried = [
        TriedForm(
            stage=one.candidate.stage,
            precision=one.candidate.precision,
            backend=one.candidate.backend,
            seconds=None if one.fault else one.seconds,
            per_token=one.per_token or None,
            error=one.error,
            size=size_of(one),
            chosen=id(one) in parts,
            note=rejection(one, settings, precision),
        )
        for one in timed
    ]
    counts: dict[str, int] = {}
    for one in timed:
        counts[one.candidate.stage] = counts.get(one.candidate.stage, 0) + 1
    reasons = {stage: f"the best of {counts[stage]} forms for {settings.target}" for stage in mix.backends}
    return PlanRecord(
        machine=fingerprint(),
        versions=_versions(mix.backends),
        target=settings.target,
        budget=settings.budget,
        backends=mix.backends,
        reasons=reasons,
        tried=tried,
    )


def _versions(backends: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(library_of(backend) for backend in set(backends.values())))


def _note(folder: Path, plan: PlanRecord) -> None:
    with changing(folder) as bundle:
        bundle.manifest = bundle.manifest.model_copy(update={"plan": plan})
        bundle.write_manifest()


def _check(
    folder: Path, baseline: Bundle, keep: float, settings: OptimizeSettings, notes: list[str], report: Progress
) -> dict[str, float]:
    """Compare the whole chain with eager PyTorch and with the source on ONNX Runtime."""
    report("whole chain", "comparing with eager PyTorch", 0.2)
    compared = validate(folder, threads=settings.threads)
    if not compared.passed:
        differ = ", ".join(compared.failing_stages) or "whole answers"
        notes.append(
            f"{differ} differ from eager PyTorch by more than tolerated: rediprune validate {folder} shows where"
        )
    report("whole chain", "timing", 0.7)
    contenders = {"optimised": (folder, "auto"), "source on ort": (baseline.folder, "ort")}
    seconds = first_token_seconds(contenders, (keep, 1.0), settings.threads)
    report("whole chain", "done", 1.0)
    measured = {f"first token at keep {ratio:g}, {name}, s": taken for (name, ratio), taken in seconds.items()}
    return {EQUAL: float(compared.passed)} | measured
