"""Settings checked against a bundle: which stages change, into what, and which layers stay."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.bundle import Bundle
from ..runtime.errors import RedipruneError
from ..runtime.memory import available_memory
from .bundle_graphs import load_graph
from .quantize.linear_layers import linear_layers
from .quantize.precision_recipes import UNCHANGED, limits_of, parse_recipe
from .quantize.schemes import SCHEMES
from .settings import CalibrationSettings

_RUNNING = 1.6  # memory that a bundle takes to run with its activations observed, in sizes of its weights


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration that was found possible.

    Attributes:
        baseline: the bundle in fp32 or fp16 that is quantised.
        settings: what was asked for.
        schemes: stage → quantization scheme, of the stages that change.
        excluded: stage → layers that stay in the baseline's precision by the settings.
    """

    baseline: Bundle
    settings: CalibrationSettings
    schemes: dict[str, str]
    excluded: dict[str, list[str]]

    @property
    def observed(self) -> list[str]:
        """Stages whose schemes use activations."""
        return [stage for stage, scheme in self.schemes.items() if self.uses_activations(scheme)]

    def uses_activations(self, scheme: str) -> bool:
        """Whether a scheme is made from activations, by itself or as the settings have it."""
        return SCHEMES[scheme].activations == "needed" or (bool(SCHEMES[scheme].activations) and self.settings.gptq)

    @property
    def needs_activations(self) -> list[str]:
        """Stages whose schemes cannot be made without activations."""
        return [stage for stage, scheme in self.schemes.items() if SCHEMES[scheme].activations == "needed"]

    def check_backend(self, backend: str | None) -> None:
        """Refuse a backend that does not take the recipe.

        Raises:
            RedipruneError: it does not; the message says why and what to choose.
        """
        for limit in limits_of(self.schemes):
            if limit.backend == backend and limit.below is None:
                raise RedipruneError(limit.says)

    def check_layers_can_stay(self) -> None:
        """Refuse schemes that take a whole stage: none of its layers has a sensitivity or can be left out.

        Raises:
            RedipruneError: there is such a scheme.
        """
        for stage, scheme in self.schemes.items():
            if not SCHEMES[scheme].per_layer:
                others = ", ".join(name for name, other in SCHEMES.items() if other.per_layer)
                raise RedipruneError(
                    f"{scheme} takes the whole of stage '{stage}', so none of its layers has a sensitivity or can stay as "
                    f"it is; choose of {others}, or go without a budget"
                )

    def can_run(self, needed: Sequence[str]) -> bool:
        """Whether the baseline fits into memory; if not, nothing is observed and no stage is compared.

        Args:
            needed: stages for which it has to run.

        Raises:
            RedipruneError: it does not fit, and stages need it.
        """
        # Not the files' sizes: weights that lie in a checkpoint of 16 bits are converted when they are loaded.
        size = sum(stage.weight_bytes for stage in self.baseline.manifest.stages.values())
        have, needs = available_memory(), int(_RUNNING * size) + (1 << 30)
        if have is None or needs <= have:
            return True
        if needed:
            others = ", ".join(name for name, scheme in SCHEMES.items() if scheme.activations != "needed")
            raise RedipruneError(
                f"running '{self.baseline.folder}' on samples takes up to {needs / 1e9:.1f} GB of memory and "
                f"{have / 1e9:.1f} GB are free; close other programs, or give {' and '.join(needed)} a scheme that needs "
                f"no samples: {others}"
            )
        return False

    def says_unreached(self, stage: str) -> str:
        """That no sample reaches a stage, and what to do."""
        media = "videos" if "video" in stage else "images"
        return (
            f"no sample reaches stage '{stage}'; give --data with {media}, or leave it as it is: "
            f"--recipe {self.settings.recipe},{stage}={UNCHANGED}"
        )


def plan_calibration(baseline: Bundle, settings: CalibrationSettings) -> CalibrationPlan:
    """Check settings against the bundle that is to be quantised, and decide what becomes of each stage.

    Raises:
        RedipruneError: a bundle that is calibrated already, a recipe that does not fit it, a pattern that names no
            layer, or a budget for a scheme that takes whole stages.
    """
    made = baseline.manifest.calibration
    if made is not None:
        recipe = settings.recipe
        raise RedipruneError(
            f"'{baseline.folder}' is calibrated already ({baseline.manifest.precision}); calibrate the bundle it was made "
            f"of: rediprune calibrate {made.source} -o {baseline.folder}-{recipe} --recipe {recipe}"
        )
    schemes = parse_recipe(settings.recipe, list(baseline.manifest.stages))
    for scheme in schemes.values():
        if SCHEMES[scheme].requires_fp32 and baseline.manifest.precision != "fp32":
            raise RedipruneError(
                f"{scheme} is made of an fp32 bundle, and '{baseline.folder}' is {baseline.manifest.precision}; export "
                f"one with: rediprune export {baseline.manifest.source.name} -o {baseline.folder}-fp32"
            )
    excluded = _match_layers(baseline, list(schemes), settings.exclude_layers)
    plan = CalibrationPlan(baseline, settings, schemes, excluded)
    if settings.budget is not None:
        plan.check_layers_can_stay()
    return plan


def _match_layers(baseline: Bundle, stages: Sequence[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Stage → layers that a pattern names, by "stage/layer" or by the layer alone.

    Raises:
        RedipruneError: a pattern that names none.
    """
    if not patterns:
        return {}
    names = {stage: [layer.name for layer in linear_layers(load_graph(baseline, stage))] for stage in stages}
    excluded: dict[str, list[str]] = {}
    for pattern in patterns:
        hits = {
            stage: [n for n in layers if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(f"{stage}/{n}", pattern)]
            for stage, layers in names.items()
        }
        if not any(hits.values()):
            some = next((layers[0] for layers in names.values() if layers), "")
            raise RedipruneError(f"--skip '{pattern}' names no linear layer; they are called like '{some}'")
        for stage, layers in hits.items():
            excluded[stage] = sorted({*excluded.get(stage, []), *layers})
    return {stage: layers for stage, layers in excluded.items() if layers}
