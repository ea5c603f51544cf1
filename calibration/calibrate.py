"""Bundle → bundle: the same model with the linear layers of its stages in smaller forms.

Made beside its place (`runtime.staging`), stage by stage; the source is only read.
"""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ..runtime.bundle import Bundle, CalibrationSpec, Sensitivity
from ..runtime.bundle.staging import Staging, check_room, check_target, making
from ..runtime.errors import RedipruneError
from ..runtime.memory import available_memory
from .activations import Statistics, collect
from .budget import ACCURACY, ERROR, Budget, parse_budget
from .bundle_graphs import load_graph
from .data import Data, open_data
from .evaluation.accuracy_loss import Exam, open_questions
from .quantization_run import Progress, Stages
from .quantize.activation_ranges import RANGES
from .quantize.linear_layers import linear_layers
from .quantize.recipes import FORMS, limits_of, parse_recipe
from .quantize.smoothquant import ALPHA
from .sensitivity import measure, units_of

_RUNNING = 1.6  # memory that a bundle takes to run with its activations tapped, in sizes of its weights
_TOOLS = ("rediprune", "onnx-ir", "onnxruntime", "numpy")


def calibrate(
    source: str | Path,
    folder: str | Path,
    recipe: str = "int8",
    *,
    data: Path | None = None,
    samples: int = 64,
    seed: int = 0,
    ranges: str = "minmax",
    alpha: float | None = ALPHA,
    skip: Sequence[str] = (),
    backend: str | None = None,
    budget: str | None = None,
    questions: int = 200,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Make a quantised bundle of one in fp32 or fp16.

    Args:
        source: the bundle to make it of. It is not changed.
        folder: the bundle to make. An up-to-date one there is left as it is.
        recipe: a shorthand or STAGE=FORM, comma separated (`recipes.parse_recipe`).
        data: a JSONL of questions or a folder of pictures and videos; None is the built-in set.
        samples: at most this many.
        seed: of the choice of samples.
        ranges: how far the integers of an activation reach: a key of `RANGES`.
        alpha: of SmoothQuant; None is without.
        skip: patterns of layers that stay as they are, e.g. "language/head", "vision/*.mlp.fc2", "*.down_proj".
        backend: what the bundle is meant for; refused here if it does not take the recipe.
        budget: the most that may be lost (`budget.parse_budget`): as few layers as that takes stay as they are.
        questions: asked to measure a budget of accuracy, at most this many.
        force: redo everything but the activations.
        progress: told what is being done.

    Returns:
        The bundle, opened.

    Raises:
        RedipruneError: a source that is calibrated already, a recipe or setting that does not fit, bad data, a budget
            that no quantised layer meets.
    """
    report = progress or (lambda stage, what, fraction: None)
    bundle = Bundle.open(source)
    made_of = bundle.manifest
    forms = _check(bundle, recipe, samples, ranges, alpha)
    bounded = None if budget is None else parse_budget(budget)
    if bounded is not None:
        _check_single_layers(forms)
        if questions < 1:
            raise RedipruneError(f"questions must be at least 1, not {questions}")
        if bounded.kind == ACCURACY and data is not None and data.is_dir():
            raise RedipruneError(f"folder '{data}' has no questions with answers; give a JSONL, or --budget error=0.02")
    limits = limits_of(forms)
    for limit in limits:
        if limit.backend == backend and limit.below is None:
            raise RedipruneError(limit.says)
    skipped = _skipped(bundle, forms, skip)
    target = check_target(folder)
    if target == bundle.folder.resolve():
        raise RedipruneError(f"'{folder}' is the bundle to calibrate, which stays as it is; give -o another folder")

    needed = [stage for stage, form in forms.items() if FORMS[form].data == "needed"]
    used = [stage for stage, form in forms.items() if FORMS[form].data]
    options = ["--recipe", recipe, "--samples", str(samples), "--seed", str(seed), "--ranges", ranges]
    options += ["--alpha", str(alpha)] if alpha is not None else ["--no-smooth"]
    options += [word for pattern in skip for word in ("--skip", pattern)]
    options += ["--budget", str(bounded)] if bounded is not None else []
    options += ["--questions", str(questions)] if bounded is not None and bounded.kind == ACCURACY else []
    options += ["--data", str(data.resolve())] if data is not None else []
    with making(target):
        cache = _cache(bundle, target)
        shown: Data | None = None
        if _can_run(bundle, needed if bounded is None else list(forms)):
            shown = _open_data(bundle, data, samples, seed, cache, report)
        record = CalibrationSpec(
            source=str(bundle.folder.resolve()),
            source_digest=made_of.digest,
            source_precision=made_of.precision,
            options=options,
            recipe=forms,
            data={} if shown is None else {"name": shown.name, "sha256": shown.sha256, "samples": len(shown.samples)},
            ranges=ranges,
            skipped=skipped,
            limits=limits,
            tools={name: version(name) for name in _TOOLS},
            budget="" if bounded is None else str(bounded),
        )
        key = record.model_dump()
        if not force and (current := _current(target, key)) is not None:
            return current
        staging = Staging(target, key, force)
        check_room(staging.folder, _size(bundle))
        statistics = {}
        if shown is not None:
            statistics = _statistics(bundle, list(forms), used, shown, cache, report)
        _check_reached(needed, statistics, recipe)
        stages = Stages(bundle, forms, statistics, ranges, alpha, staging, report)

        def costs(names: Sequence[str]) -> list[Sensitivity]:
            assert shown is not None  # with a budget the source was found to run
            return _costs(bundle, forms, names, skipped, statistics, shown, ranges, alpha, cache, force, report)

        def written() -> Bundle:
            found = record.model_copy(
                update={
                    "recipe": {name: form for name, form in forms.items() if name in stages.fidelity},
                    "limits": limits_of({name: forms[name] for name in stages.fidelity}),
                    "fidelity": stages.fidelity,
                    "skipped": {name: layers for name, layers in stages.skipped.items() if layers},
                    "sensitivity": stages.sensitivity,
                }
            )
            changes = {"tool_version": version("rediprune"), "precision": recipe, "engines": {}, "calibration": found}
            return stages.write(made_of.model_copy(update=changes))

        for name in made_of.stages:
            if name not in forms:
                stages.leave(name)
                continue
            if not stages.resume(name):
                stages.make(name, skipped.get(name, []))
                if bounded is not None and bounded.kind == ERROR and stages.error(name) > bounded.most:
                    stages.spare(costs([name]), skipped, bounded, partial(stages.error, name))
                stages.finish(name)
            report(name, "done", 1.0)
        if bounded is not None and bounded.kind == ERROR:
            record.measured = {name: stages.error(name) for name in stages.fidelity}
        elif bounded is not None:
            asked = open_questions(data, samples, questions, seed, "video" in made_of.modalities, cache)
            exam = Exam(bundle.folder, asked, cache / "replies.jsonl", partial(_told, report))
            for name in forms:
                stages.make(name, skipped.get(name, []))
            stages.sensitivity = []
            if exam.lost(written().folder) > bounded.most:
                stages.spare(costs(list(forms)), skipped, bounded, lambda: exam.lost(written().folder))
            for name in forms:
                stages.finish(name)
            record.measured = exam.points(written().folder)
        if not stages.fidelity:
            raise RedipruneError(_says_impossible(bounded, stages.sensitivity))
        staging.publish(written().manifest)
    return Bundle.open(target)


def sensitivity(
    source: str | Path,
    recipe: str = "int8",
    *,
    data: Path | None = None,
    samples: int = 64,
    seed: int = 0,
    ranges: str = "minmax",
    alpha: float | None = ALPHA,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """What each unit of layers costs where it alone is quantised; what was measured serves `calibrate` too.

    Takes what `calibrate` takes, makes no bundle, and raises what it raises.
    """
    report = progress or (lambda stage, what, fraction: None)
    bundle = Bundle.open(source)
    forms = _check(bundle, recipe, samples, ranges, alpha)
    _check_single_layers(forms)
    with making(bundle.folder.resolve().with_name(f"{bundle.folder.resolve().name}.sensitivity")):
        _can_run(bundle, list(forms))
        cache = _cache(bundle, bundle.folder.resolve())
        shown = _open_data(bundle, data, samples, seed, cache, report)
        used = [stage for stage, form in forms.items() if FORMS[form].data]
        statistics = _statistics(bundle, list(forms), used, shown, cache, report)
        _check_reached([name for name in used if FORMS[forms[name]].data == "needed"], statistics, recipe)
        return _costs(bundle, forms, list(forms), {}, statistics, shown, ranges, alpha, cache, force, report)


def _costs(
    bundle: Bundle,
    forms: Mapping[str, str],
    stages: Sequence[str],
    skipped: Mapping[str, list[str]],
    statistics: Mapping[str, Statistics],
    shown: Data,
    ranges: str,
    alpha: float | None,
    cache: Path,
    force: bool,
    report: Progress,
) -> list[Sensitivity]:
    """What each unit of some stages costs, but for layers that are skipped."""
    return measure(
        bundle,
        {stage: forms[stage] for stage in stages},
        [unit for stage in stages for unit in units_of(bundle, stage, skipped.get(stage, []))],
        {stage: statistics[stage].activations for stage in stages},
        shown.held_out,
        _place(bundle, shown, cache),
        ranges,
        alpha,
        force,
        progress=lambda what, fraction: report("sensitivity", what, fraction),
    )


def _open_data(bundle: Bundle, data: Path | None, samples: int, seed: int, cache: Path, report: Progress) -> Data:
    report("data", "reading", 0.0)
    shown = open_data(data, samples, seed, "video" in bundle.manifest.modalities, cache)
    report("data", f"{len(shown.samples)} samples, {len(shown.held_out)} held out", 1.0)
    return shown


def _told(report: Progress, label: str, at: int, total: int) -> None:
    report("questions", label, at / total)


def _says_impossible(budget: Budget | None, found: Sequence[Sensitivity]) -> str:
    """That a budget leaves nothing quantised, and what the last unit tried alone costs."""
    if budget is None or not found:
        return "no layer is left to quantise; give fewer --skip"
    last = {one.stage: one for one in found}.values() if budget.kind == ERROR else found[-1:]
    least = min(last, key=lambda one: one.error)
    return (
        f"no layer can be quantised within {budget}: '{least.stage}/{least.unit}' alone loses more (its error is "
        f"{least.error:.2g}); allow more, or choose another form with --recipe"
    )


def _check(bundle: Bundle, recipe: str, samples: int, ranges: str, alpha: float | None) -> dict[str, str]:
    """Stage → form, of settings found good."""
    made_of = bundle.manifest
    _check_source(bundle, recipe)
    if ranges not in RANGES:
        raise RedipruneError(f"ranges '{ranges}' are not one of {', '.join(RANGES)}")
    if samples < 1:
        raise RedipruneError(f"samples must be at least 1, not {samples}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise RedipruneError(f"alpha must lie in [0, 1], not {alpha}")
    forms = parse_recipe(recipe, list(made_of.stages))
    for form in forms.values():
        if FORMS[form].from_fp32 and made_of.precision != "fp32":
            raise RedipruneError(
                f"{form} is made of an fp32 bundle, and '{bundle.folder}' is {made_of.precision}; export one with: "
                f"rediprune export {made_of.source.name} -o {bundle.folder}-fp32"
            )
    return forms


def _check_single_layers(forms: Mapping[str, str]) -> None:
    for stage, form in forms.items():
        if not FORMS[form].single_layers:
            others = ", ".join(name for name, other in FORMS.items() if other.single_layers)
            raise RedipruneError(
                f"{form} takes the whole of stage '{stage}', so none of its layers has a sensitivity or can stay as it is; "
                f"choose of {others}, or go without a budget"
            )


def _check_reached(needed: Sequence[str], statistics: Mapping[str, Statistics], recipe: str) -> None:
    """Refuse stages whose forms are made of activations where no sample gave any."""
    for stage in needed:
        if not statistics[stage].activations:
            raise RedipruneError(
                f"no sample reaches stage '{stage}'; give --data with {'videos' if 'video' in stage else 'pictures'}, "
                f"or leave it as it is: --recipe {recipe},{stage}=keep"
            )


def _check_source(bundle: Bundle, recipe: str) -> None:
    made = bundle.manifest.calibration
    if made is not None:
        raise RedipruneError(
            f"'{bundle.folder}' is calibrated already ({bundle.manifest.precision}); calibrate the bundle it was made of: "
            f"rediprune calibrate {made.source} -o {bundle.folder}-{recipe} --recipe {recipe}"
        )


def _skipped(bundle: Bundle, forms: Mapping[str, str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Stage → layers that a pattern names, by "stage/layer" or by the layer alone.

    Raises:
        RedipruneError: a pattern that names none.
    """
    if not patterns:
        return {}
    names = {stage: [layer.name for layer in linear_layers(load_graph(bundle, stage))] for stage in forms}
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        hits = {
            stage: [n for n in layers if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(f"{stage}/{n}", pattern)]
            for stage, layers in names.items()
        }
        if not any(hits.values()):
            some = next((layers[0] for layers in names.values() if layers), "")
            raise RedipruneError(f"--skip '{pattern}' names no linear layer; they are called like '{some}'")
        for stage, layers in hits.items():
            found[stage] = sorted({*found.get(stage, []), *layers})
    return {stage: layers for stage, layers in found.items() if layers}


def _size(bundle: Bundle) -> int:
    return sum(bundle.path(file).stat().st_size for file in bundle.expected_files())


def _can_run(bundle: Bundle, needed: Sequence[str]) -> bool:
    """Whether the source fits into memory: without it no activations are had, and no stage is compared.

    Raises:
        RedipruneError: it does not, and stages are `needed` that are made from activations.
    """
    # Not the files' sizes: weights that lie in a checkpoint of 16 bits are converted when they are loaded.
    size, have = sum(stage.weight_bytes for stage in bundle.manifest.stages.values()), available_memory()
    needs = int(_RUNNING * size) + (1 << 30)
    if have is None or needs <= have:
        return True
    if needed:
        raise RedipruneError(
            f"running '{bundle.folder}' on samples takes up to {needs / 1e9:.1f} GB of memory and {have / 1e9:.1f} GB are "
            f"free; close other programs, or give {' and '.join(needed)} a form that needs no samples: {', '.join(name for name, form in FORMS.items() if form.data != 'needed')}"
        )
    return False


def _statistics(
    bundle: Bundle, stages: list[str], used: Sequence[str], shown: Data, cache: Path, report: Progress
) -> dict[str, Statistics]:
    """What the stages got on the samples, from an earlier calibration of the same bundle on the same data if it is there.

    Activations are taken for those where they are `used`; cases held out for all.
    """
    place = _place(bundle, shown, cache)
    found = {}
    for stage in stages:
        with suppress(OSError, ValueError):
            stored = Statistics.load(place / f"{stage}.npz")
            if stored.activations or stage not in used:
                found[stage] = stored
    missing = [stage for stage in stages if stage not in found]
    if missing:
        made = collect(
            bundle,
            [stage for stage in missing if stage in used],
            missing,
            shown.samples,
            shown.held_out,
            progress=lambda what, fraction: report("activations", what, fraction),
        )
        for stage, statistics in made.items():
            statistics.save(place / f"{stage}.npz")
        found |= made
    report("activations", "done", 1.0)
    return found


def _cache(bundle: Bundle, beside: Path) -> Path:
    """Where is kept what was seen of a bundle, for calibrations `beside` which it lies."""
    return beside.parent / f".{bundle.folder.resolve().name}.activations"


def _place(bundle: Bundle, shown: Data, cache: Path) -> Path:
    """In there, the folder for this bundle and data."""
    place = cache / hashlib.sha256(f"{bundle.manifest.digest} {shown.sha256}".encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    return place


def _current(folder: Path, key: Mapping[str, object]) -> Bundle | None:
    """The bundle in `folder`, if it is whole and was made of the same in the same way."""
    try:
        bundle = Bundle.open(folder, remember=False)
    except RedipruneError:
        return None
    made = bundle.manifest.calibration
    ignored = {
        "recipe",
        "limits",
        "skipped",
        "fidelity",
        "measured",
        "sensitivity",
        "floors",
    }  # outcomes of the options
    same = made is not None and made.model_dump(exclude=ignored) == {k: v for k, v in key.items() if k not in ignored}
    return bundle if same else None
