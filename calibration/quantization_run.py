"""The stages of a calibrated bundle in the making: each put into its form, compared with the source, and finished."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle import WEIGHTS, Bundle, Fidelity, Manifest, Sensitivity, StageSpec, TensorSpec, file_sha256
from ..runtime.bundle.staging import Staging
from ..runtime.errors import RedipruneError
from .activations import Held, Statistics
from .budget import Budget, by_worth, fewest
from .bundle_graphs import load_graph
from .evaluation.similarity import compare_stage
from .quantize.apply import apply_form
from .quantize.linear_layers import linear_layers
from .quantize.recipes import FORMS

Progress = Callable[[str, str, float], None]  # stage, what is being done, fraction done


class Stages:
    """What was made so far.

    Attributes:
        specs: stage → what it became.
        fidelity: stage in a form of its own → how near it comes to the source's.
        skipped: stage → layers left as they were.
        sensitivity: where a budget left layers, what they and the others cost.
    """

    def __init__(
        self,
        bundle: Bundle,
        forms: Mapping[str, str],
        statistics: Mapping[str, Statistics],
        ranges: str,
        alpha: float | None,
        staging: Staging,
        report: Progress,
    ):
        self.bundle, self.forms, self.statistics = bundle, forms, statistics
        self.ranges, self.alpha, self.staging, self.report = ranges, alpha, staging, report
        self.specs: dict[str, StageSpec] = {}
        self.fidelity: dict[str, Fidelity | None] = {}
        self.skipped: dict[str, list[str]] = {}
        self.sensitivity: list[Sensitivity] = []

    def leave(self, stage: str) -> None:
        """The stage as it is in the source."""
        if stage not in self.specs or stage in self.fidelity:
            self._unfinish(stage)
            self.fidelity.pop(stage, None)
            self.skipped.pop(stage, None)
            self.specs[stage] = _carry_over(self.bundle, stage, self.staging.folder)

    def make(self, stage: str, skipped: Sequence[str]) -> None:
        """The stage in its form but for layers that are skipped; nothing to do if that is what it is."""
        if stage in self.fidelity and self.skipped.get(stage, []) == list(skipped):
            return
        self._unfinish(stage)
        self.report(stage, "quantising", 0.0)
        seen = self.statistics.get(stage, Statistics({}, []))
        model = load_graph(self.bundle, stage)
        layers = [layer for layer in linear_layers(model) if layer.name not in skipped]
        form = self.forms[stage]
        apply_form(model, form, layers, seen.activations, self.ranges, self.alpha)
        made = save_stage(model, self.bundle.manifest.stages[stage], form, self.staging.folder, self.report)
        self.report(stage, "comparing with the source", 0.8)
        self.specs[stage] = made
        self.fidelity[stage] = _fidelity(self.bundle, stage, made, seen.held, self.staging.folder)
        self.skipped[stage] = list(skipped)

    def error(self, stage: str) -> float:
        """Relative error of the stage as it now is.

        Raises:
            RedipruneError: there is nothing to compare.
        """
        if stage not in self.fidelity:
            return 0.0
        near = self.fidelity[stage]
        if near is None:
            raise RedipruneError(
                f"no sample held out reaches stage '{stage}', so its error is not known; give more with --data, or leave "
                f"the stage as it is: {stage}=keep"
            )
        return near.relative_error

    def spare(
        self, found: Sequence[Sensitivity], skipped: Mapping[str, list[str]], budget: Budget, loss: Callable[[], float]
    ) -> None:
        """Leave as few units as they are as it takes for `loss` to be within the budget.

        Args:
            found: of every unit of some stages.
            skipped: stage → layers that are left anyway.
            budget: exceeded with none of the units left.
            loss: of the bundle as it then is.
        """
        order = by_worth(found, budget.kind)

        def put(count: int) -> None:
            for stage in dict.fromkeys(one.stage for one in order):
                if all(one.stage != stage for one in order[count:]):
                    self.leave(stage)
                    continue
                layers = [layer for one in order[:count] if one.stage == stage for layer in one.layers]
                self.make(stage, sorted({*skipped.get(stage, []), *layers}))

        def measured(count: int) -> float:
            put(count)
            return loss()

        count = fewest(len(order), measured, budget.most)
        put(count)
        self.sensitivity += [one.model_copy(update={"quantised": at >= count}) for at, one in enumerate(order)]

    def resume(self, stage: str) -> bool:
        """Take over what an interrupted run finished of the stage, if it did."""
        spec, path = self.staging.finished(stage), self._outcome(stage)
        if spec is None or not path.is_file():
            return False
        outcome = json.loads(path.read_text(encoding="utf-8"))
        self.specs[stage] = spec
        if outcome["changed"]:
            near = outcome["fidelity"]
            self.fidelity[stage] = None if near is None else Fidelity.model_validate(near)
        self.skipped[stage] = outcome["skipped"]
        self.sensitivity += [Sensitivity.model_validate(one) for one in outcome["sensitivity"]]
        return True

    def finish(self, stage: str) -> None:
        """Note that the stage is done, so that an interrupted run need not make it again."""
        near = self.fidelity.get(stage)
        outcome = {
            "changed": stage in self.fidelity,
            "fidelity": None if near is None else near.model_dump(),
            "skipped": self.skipped.get(stage, []),
            "sensitivity": [one.model_dump() for one in self.sensitivity if one.stage == stage],
        }
        self._outcome(stage).write_text(json.dumps(outcome), encoding="utf-8")
        self.staging.finish(stage, self.specs[stage])

    def write(self, manifest: Manifest) -> Bundle:
        """The bundle as it now is, where it is made."""
        for file in manifest.files:
            path = self.staging.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.bundle.path(file), path)
        bundle = Bundle(self.staging.folder, manifest.model_copy(update={"stages": self.specs}))
        bundle.write_manifest()
        return bundle

    def _outcome(self, stage: str) -> Path:
        return self.staging.folder / f"{stage}.outcome.done"

    def _unfinish(self, stage: str) -> None:
        self._outcome(stage).unlink(missing_ok=True)
        for file in self.specs[stage].files if stage in self.specs else ():
            (self.staging.folder / file).unlink(missing_ok=True)


def _carry_over(bundle: Bundle, stage: str, folder: Path) -> StageSpec:
    """A stage as it is: copied, or written anew with weights of its own where it refers to the checkpoint's files.

    Not linked: these files hold the other stages' weights too, and onnx_ir reads no file of two names.
    """
    spec = bundle.manifest.stages[stage]
    if any(file.startswith(f"{WEIGHTS}/") for file in spec.files):
        return save_stage(load_graph(bundle, stage), spec, spec.precision, folder, lambda *_: None)
    for file in spec.files:
        shutil.copyfile(bundle.path(file), folder / file)
    return spec


def save_stage(model: ir.Model, spec: StageSpec, form: str, folder: Path, report: Progress) -> StageSpec:
    """Write a stage's rewritten graph and its weights where a bundle has them; an unfinished one leaves nothing behind.

    Args:
        model: the graph.
        spec: of the stage it was made of.
        form: what it is in now.
        folder: the bundle being made, with its `onnx/`.
        report: told how far the weights are.
    """
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
