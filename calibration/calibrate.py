"""Bundle → bundle: the same model with the linear layers of its stages in smaller forms.

Made beside its place (`runtime.staging`), stage by stage; the source is only read.
"""

import fnmatch
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle import WEIGHTS, Bundle, CalibrationSpec, Fidelity, StageSpec, TensorSpec, file_sha256
from ..runtime.errors import RedipruneError
from ..runtime.memory import available_memory
from ..runtime.staging import Staging, check_room, check_target, making
from . import halves, int4, int8_dynamic, qdq
from .activations import Activation, Held, Statistics, collect
from .data import Data, open_data
from .fidelity import compare_stage
from .graph import load_graph
from .layers import linear_layers
from .ranges import RANGES
from .recipes import FORMS, limits_of, parse_recipe
from .smooth import ALPHA

Progress = Callable[[str, str, float], None]  # stage, what is being done, fraction done

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
        force: redo everything but the activations.
        progress: told what is being done.

    Returns:
        The bundle, opened.

    Raises:
        RedipruneError: a source that is calibrated already, a recipe or setting that does not fit, bad data.
    """
    report = progress or (lambda stage, what, fraction: None)
    bundle = Bundle.open(source)
    made_of = bundle.manifest
    _check_source(bundle, recipe)
    if ranges not in RANGES:
        raise RedipruneError(f"ranges '{ranges}' are not one of {', '.join(RANGES)}")
    if samples < 1:
        raise RedipruneError(f"samples must be at least 1, not {samples}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise RedipruneError(f"alpha must lie in [0, 1], not {alpha}")
    forms = parse_recipe(recipe, list(made_of.stages))
    limits = limits_of(forms)
    for limit in limits:
        if limit.backend == backend and limit.below is None:
            raise RedipruneError(limit.says)
    skipped = _skipped(bundle, forms, skip)
    target = check_target(folder)
    if target == bundle.folder.resolve():
        raise RedipruneError(f"'{folder}' is the bundle to calibrate, which stays as it is; give -o another folder")

    for form in forms.values():
        if FORMS[form].from_fp32 and made_of.precision != "fp32":
            raise RedipruneError(
                f"{form} is made of an fp32 bundle, and '{source}' is {made_of.precision}; export one with: rediprune export "
                f"{made_of.source.name} -o {source}-fp32"
            )
    needed = [stage for stage, form in forms.items() if FORMS[form].data == "needed"]
    used = [stage for stage, form in forms.items() if FORMS[form].data]
    options = ["--recipe", recipe, "--samples", str(samples), "--seed", str(seed), "--ranges", ranges]
    options += ["--alpha", str(alpha)] if alpha is not None else ["--no-smooth"]
    options += [word for pattern in skip for word in ("--skip", pattern)]
    options += ["--data", str(data.resolve())] if data is not None else []
    with making(target):
        cache = target.parent / f".{bundle.folder.resolve().name}.activations"
        shown: Data | None = None
        if _can_run(bundle, needed):
            report("data", "reading", 0.0)
            shown = open_data(data, samples, seed, "video" in made_of.modalities, cache)
            report("data", f"{len(shown.samples)} samples, {len(shown.held_out)} held out", 1.0)
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
        )
        key = record.model_dump()
        if not force and (current := _current(target, key)) is not None:
            return current
        staging = Staging(target, key, force)
        check_room(staging.folder, _size(bundle))
        statistics = {}
        if shown is not None:
            statistics = _statistics(bundle, list(forms), used, shown, cache, report)
        for stage in needed:
            if not statistics[stage].activations:
                raise RedipruneError(
                    f"no sample reaches stage '{stage}'; give --data with {'videos' if 'video' in stage else 'pictures'}, "
                    f"or leave it as it is: --recipe {recipe},{stage}=keep"
                )
        stages = {}
        for name in made_of.stages:
            if name not in forms:
                stages[name] = _carry_over(bundle, name, staging.folder)
                continue
            finished, fidelity = staging.finished(name), staging.folder / f"{name}.fidelity.done"
            if finished is None or not fidelity.is_file():
                report(name, "quantising", 0.0)
                seen = statistics.get(name, Statistics({}, []))
                skips = skipped.get(name, [])
                finished = _make_stage(
                    bundle,
                    name,
                    forms[name],
                    seen.activations,
                    skips,
                    ranges,
                    alpha,
                    staging,
                    report,
                )
                report(name, "comparing with the source", 0.8)
                near = _fidelity(bundle, name, finished, seen.held, staging.folder)
                fidelity.write_text("null" if near is None else near.model_dump_json(), encoding="utf-8")
                staging.finish(name, finished)
            stages[name] = finished
            found = json.loads(fidelity.read_text(encoding="utf-8"))
            record.fidelity[name] = None if found is None else Fidelity.model_validate(found)
            report(name, "done", 1.0)
        manifest = made_of.model_copy(
            update={
                "tool_version": version("rediprune"),
                "precision": recipe,
                "stages": stages,
                "engines": {},
                "calibration": record,
            }
        )
        for file in made_of.files:
            (staging.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(file), staging.folder / file)
        staging.publish(manifest)
    return Bundle.open(target)


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
    digest = hashlib.sha256(f"{bundle.manifest.digest} {shown.sha256}".encode()).hexdigest()[:16]
    place = cache / digest
    place.mkdir(parents=True, exist_ok=True)
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


def _make_stage(
    bundle: Bundle,
    stage: str,
    form: str,
    activations: Mapping[str, Activation],
    skipped: Sequence[str],
    ranges: str,
    alpha: float | None,
    staging: Staging,
    report: Progress,
) -> StageSpec:
    model = load_graph(bundle, stage)
    layers = [layer for layer in linear_layers(model) if layer.name not in skipped]
    match form:
        case "int8":
            qdq.quantize(model, layers, activations, qdq.INT8, ranges, alpha)
        case "fp8":  # has exponents for the outliers
            qdq.quantize(model, layers, activations, qdq.FP8, alpha=None)
        case "int8-dynamic":
            int8_dynamic.quantize(model, layers)
        case "int4":
            int4.quantize(model, layers, {name: seen.rows for name, seen in activations.items()} or None)
        case "fp16":
            halves.convert(model, ir.DataType.FLOAT16)
        case "bf16":
            halves.convert(model, ir.DataType.BFLOAT16)
    return _save(model, bundle.manifest.stages[stage], form, staging.folder, report)


def _carry_over(bundle: Bundle, stage: str, folder: Path) -> StageSpec:
    """A stage as it is: copied, or written anew with weights of its own where it refers to the checkpoint's files.

    Not linked: these files hold the other stages' weights too, and onnx_ir reads no file of two names.
    """
    spec = bundle.manifest.stages[stage]
    if any(file.startswith(f"{WEIGHTS}/") for file in spec.files):
        return _save(load_graph(bundle, stage), spec, spec.precision, folder, lambda *_: None)
    for file in spec.files:
        shutil.copyfile(bundle.path(file), folder / file)
    return spec


def _save(model: ir.Model, spec: StageSpec, form: str, folder: Path, report: Progress) -> StageSpec:
    path = folder / spec.file
    data = path.with_name(path.name + ".data")

    def written(tensor: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
        report(path.stem, "writing weights", 0.1 + 0.7 * info.index / max(info.total, 1))

    try:
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        ir.save(model, path, external_data=data.name, callback=written)
        if not data.stat().st_size:  # a stage without weights
            data.unlink()
    except BaseException:  # Ctrl-C too: an unfinished stage leaves nothing behind
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        raise
    files = {f"onnx/{file.name}": file_sha256(file) for file in (path, data) if file.is_file()}
    ports = zip((spec.inputs, spec.outputs), (model.graph.inputs, model.graph.outputs), strict=True)
    inputs, outputs = ([_port(port, value) for port, value in zip(*both, strict=True)] for both in ports)
    tensors = (value.const_value for value in model.graph.initializers.values())
    weight_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return StageSpec(
        file=spec.file, files=files, weight_bytes=weight_bytes, precision=form, inputs=inputs, outputs=outputs
    )


def _port(port: TensorSpec, value: ir.Value) -> TensorSpec:
    return port.model_copy(update={"dtype": value.dtype.numpy().name} if value.dtype is not None else {})


def _fidelity(bundle: Bundle, stage: str, spec: StageSpec, held: Sequence[Held], folder: Path) -> Fidelity | None:
    """Run a finished stage on what the source's got and compare; None where there is nothing to compare."""
    if not held or "ort" in FORMS[spec.precision].refused:
        return None
    manifest = bundle.manifest.model_copy(update={"stages": {**bundle.manifest.stages, stage: spec}, "engines": {}})
    found = compare_stage(Bundle(folder, manifest), stage, held)
    return Fidelity(
        cosine=min(near.cosine for near in found), relative_error=max(near.relative_error for near in found)
    )


def _current(folder: Path, key: Mapping[str, object]) -> Bundle | None:
    """The bundle in `folder`, if it is whole and was made of the same in the same way."""
    try:
        bundle = Bundle.open(folder, remember=False)
    except RedipruneError:
        return None
    made = bundle.manifest.calibration
    ignored = {"fidelity", "floors"}  # outcomes
    same = made is not None and made.model_dump(exclude=ignored) == {k: v for k, v in key.items() if k not in ignored}
    return bundle if same else None
