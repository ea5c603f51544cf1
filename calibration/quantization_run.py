"""The stages of a calibrated bundle in the making: each quantised, compared with the baseline, and finished."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..runtime.bundle import Bundle, Fidelity, Manifest, Sensitivity, StageSpec
from ..runtime.bundle.staging import Staging
from ..runtime.errors import RedipruneError
from .budget import Budget, by_benefit_per_weight, fewest_excluded
from .bundle_graphs import load_graph
from .evaluation.similarity import stage_fidelity
from .plan import CalibrationPlan
from .progress_types import StageProgress
from .quantize.linear_layers import linear_layers
from .quantize.precision_recipes import UNCHANGED
from .quantize.schemes import SCHEMES, PassInputs
from .stage_statistics import HeldOutCase, StageStatistics
from .stage_writer import copy_stage, save_stage


class QuantizationRun:
    """What has been made so far of the bundle that a plan describes.

    Attributes:
        specs: stage → what it has become.
        fidelity: stage that was quantised → how near it comes to the baseline's.
        excluded: stage → layers left in the baseline's precision.
        sensitivities: of the layer groups among which a budget chose.
    """

    def __init__(
        self,
        plan: CalibrationPlan,
        statistics: Mapping[str, StageStatistics],
        staging: Staging,
        report: StageProgress,
    ):
        """Begin with nothing made.

        Args:
            plan: what to make.
            statistics: stage → what was observed of it; none of a baseline that could not be run.
            staging: the folder it is made in.
            report: called with what is being done.
        """
        self.plan, self.statistics, self.staging, self.report = plan, statistics, staging, report
        self.specs: dict[str, StageSpec] = {}
        self.fidelity: dict[str, Fidelity | None] = {}
        self.excluded: dict[str, list[str]] = {}
        self.sensitivities: list[Sensitivity] = []

    def copy(self, stage: str) -> None:
        """Copy a stage unchanged from the baseline, unless that was done already."""
        if stage not in self.specs or stage in self.fidelity:
            self._remove(stage)
            self.fidelity.pop(stage, None)
            self.excluded.pop(stage, None)
            self.specs[stage] = copy_stage(self.plan.baseline, stage, self.staging.folder)

    def quantise(self, stage: str, excluded: Sequence[str] | None = None) -> None:
        """Put the stage in its scheme; nothing is done if that is what it is already.

        Args:
            stage: one that the plan has a scheme for.
            excluded: layers that stay in the baseline's precision; None is those of the plan.
        """
        excluded = list(self.plan.excluded.get(stage, []) if excluded is None else excluded)
        if stage in self.fidelity and self.excluded.get(stage, []) == excluded:
            return
        self._remove(stage)
        self.report(stage, "quantising", 0.0)
        baseline, settings, scheme = self.plan.baseline, self.plan.settings, self.plan.schemes[stage]
        seen = self.statistics.get(stage, StageStatistics())
        model = load_graph(baseline, stage)
        names = {layer.name for layer in linear_layers(model)} - set(excluded)
        activations = seen.activations if self.plan.uses_activations(scheme) else {}
        given = PassInputs(activations, settings.ranges, settings.smoothing, names)
        SCHEMES[scheme].make_pass(given)(model)
        spec = save_stage(
            model,
            baseline.manifest.stages[stage],
            scheme,
            self.staging.folder,
            lambda fraction: self.report(stage, "writing weights", 0.1 + 0.7 * fraction),
        )
        self.report(stage, "comparing with the baseline", 0.8)
        self.specs[stage] = spec
        self.fidelity[stage] = _fidelity(baseline, stage, spec, seen.held_out, self.staging.folder)
        self.excluded[stage] = excluded

    def error(self, stage: str) -> float:
        """Relative error of the stage as it now is, of the worst held-out sample.

        Raises:
            RedipruneError: no held-out sample reaches it.
        """
        if stage not in self.fidelity:
            return 0.0
        near = self.fidelity[stage]
        if near is None:
            raise RedipruneError(
                f"no held-out sample reaches stage '{stage}', so its error is not known; give more with --data, or leave "
                f"the stage as it is: {stage}={UNCHANGED}"
            )
        return near.relative_error

    def exclude_layers(self, sensitivities: Sequence[Sensitivity], budget: Budget, loss: Callable[[], float]) -> None:
        """Leave as few layer groups in the baseline's precision as it takes for the loss to be within a budget.

        Args:
            sensitivities: of every layer group of some stages.
            budget: exceeded with none of the groups left out.
            loss: of the bundle as it then is.
        """
        order = by_benefit_per_weight(sensitivities, budget.kind)

        def exclude(count: int) -> None:
            for stage in dict.fromkeys(one.stage for one in order):
                if all(one.stage != stage for one in order[count:]):
                    self.copy(stage)
                    continue
                layers = [layer for one in order[:count] if one.stage == stage for layer in one.layers]
                self.quantise(stage, sorted({*self.plan.excluded.get(stage, []), *layers}))

        def measured(count: int) -> float:
            exclude(count)
            return loss()

        count = fewest_excluded(len(order), measured, budget.limit)
        exclude(count)
        self.sensitivities += [one.model_copy(update={"quantised": at >= count}) for at, one in enumerate(order)]

    def resume(self, stage: str) -> bool:
        """Take over what an interrupted run finished of the stage; False if it did not."""
        spec, path = self.staging.finished(stage), self._outcome(stage)
        if spec is None or not path.is_file():
            return False
        outcome = json.loads(path.read_text(encoding="utf-8"))
        self.specs[stage] = spec
        if outcome["changed"]:
            near = outcome["fidelity"]
            self.fidelity[stage] = None if near is None else Fidelity.model_validate(near)
        self.excluded[stage] = outcome["excluded"]
        self.sensitivities += [Sensitivity.model_validate(one) for one in outcome["sensitivities"]]
        return True

    def finish(self, stage: str) -> None:
        """Note that the stage is done, so that an interrupted run need not make it again."""
        near = self.fidelity.get(stage)
        outcome = {
            "changed": stage in self.fidelity,
            "fidelity": None if near is None else near.model_dump(),
            "excluded": self.excluded.get(stage, []),
            "sensitivities": [one.model_dump() for one in self.sensitivities if one.stage == stage],
        }
        self._outcome(stage).write_text(json.dumps(outcome), encoding="utf-8")
        self.staging.finish(stage, self.specs[stage])

    def write(self, manifest: Manifest) -> Bundle:
        """Write the bundle as it now is into the staging folder.

        Args:
            manifest: what it says of itself; its stages are filled in.
        """
        for file in manifest.files:
            path = self.staging.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.plan.baseline.path(file), path)
        bundle = Bundle(self.staging.folder, manifest.model_copy(update={"stages": self.specs}))
        bundle.write_manifest()
        return bundle

    def _outcome(self, stage: str) -> Path:
        return self.staging.folder / f"{stage}.outcome.done"

    def _remove(self, stage: str) -> None:
        """Remove what was made of the stage."""
        self._outcome(stage).unlink(missing_ok=True)
        for file in self.specs[stage].files if stage in self.specs else ():
            (self.staging.folder / file).unlink(missing_ok=True)


def _fidelity(
    baseline: Bundle, stage: str, spec: StageSpec, held_out: Sequence[HeldOutCase], folder: Path
) -> Fidelity | None:
    """Run a finished stage on what the baseline's got and compare; None where there is nothing to compare."""
    if not held_out or "ort" in SCHEMES[spec.precision].refused:
        return None
    manifest = baseline.manifest.model_copy(update={"stages": {**baseline.manifest.stages, stage: spec}, "engines": {}})
    compared = stage_fidelity(Bundle(folder, manifest), stage, held_out)
    return Fidelity(
        cosine=min(near.cosine for near in compared),
        relative_error=max(near.relative_error for near in compared),
    )
