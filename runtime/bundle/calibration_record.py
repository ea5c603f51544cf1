"""What the manifest says of a calibrated bundle: how it was made, and what was lost."""

from collections.abc import Mapping, Sequence
from typing import Self

from .strict_model import StrictModel

# A recorded tolerance counts up to so many times the error on the samples held out at calibration, and never beyond the
# second. The first is from the demo: the worst of 32 samples was up to 3.7 times the worst of the 8 held out, and a report
# leaves half as much again for the next picture (3.7 × 1.5 = 5.6). A stage that gives zeros is off by 1, one that gives
# noise by more; so what a broken engine was measured to do does not become what is allowed.
TOLERANCE_FACTOR = 6.0
LARGEST_TOLERANCE = 0.5


class Limit(StrictModel):
    """Where a calibrated bundle cannot be used: a backend, or its GPUs below a compute capability ("sm_89").

    It is one of the stages in the quantization scheme named; of the whole bundle where none is, as earlier versions had it.
    """

    backend: str
    scheme: str = ""
    below: str | None = None
    says: str


class Fidelity(StrictModel):
    """How near a quantised stage comes to the source's on samples held out: the worst of them, over all outputs."""

    cosine: float
    relative_error: float  # ‖difference‖ / ‖source's output‖


class Sensitivity(StrictModel):
    """What the layers that read one value cost where they alone are quantised, on samples held out.

    Attributes:
        stage, unit: where they are, and their name.
        layers, weights: the layers, and how many numbers they multiply with.
        error: of the stage's outputs, ‖difference‖ / ‖source's output‖, the worst.
        kept: overlap (Jaccard) of the kept sets with the source's, the mean; None where the stage has no say in them.
        logits: relative error of the logits, the mean over samples.
        tokens: share of next tokens that stay the same.
        quantised: what was chosen for them; where not, they stay in the source's precision.
    """

    stage: str
    unit: str
    layers: list[str]
    weights: int
    error: float
    kept: float | None = None
    logits: float
    tokens: float
    quantised: bool = True


class CalibrationSpec(StrictModel):
    """How a calibrated bundle was made of another one.

    Attributes:
        source, source_digest, source_precision: that bundle's folder, manifest digest and precision.
        options: what `rediprune calibrate` was told, so that the same can be made again.
        recipe: stage → form; a stage not named is the source's own.
        data: name, content hash (sha256) and number of samples; {} where no form needed any.
        ranges: how activation ranges were taken.
        skipped: stage → linear layers left as they were.
        fidelity: stage → how near it comes to the source's; None where this machine cannot run the form.
        limits: what cannot take the bundle.
        tools: library → version.
        budget: how much might be lost, as `rediprune calibrate` was told: "error=0.02", "accuracy=1"; "" where it was not.
        measured: what is lost: by stage the relative error, or by keep ratio the points of accuracy.
        sensitivity: the ground of the choice of what stays in higher precision; empty where nothing had to.
        tolerances: backend → stage → the largest relative error that `validate` lets pass there, as measured by
            `rediprune report`. Read them with `tolerance`, which caps them.
        floors: the same, of no backend in particular; written by versions up to 0.1.0, and only read.
    """

    source: str
    source_digest: str
    source_precision: str
    options: list[str]
    recipe: dict[str, str]
    data: dict[str, str | int] = {}
    ranges: str = ""
    skipped: dict[str, list[str]] = {}
    fidelity: dict[str, Fidelity | None] = {}
    limits: list[Limit] = []
    tools: dict[str, str] = {}
    budget: str = ""
    measured: dict[str, float] = {}
    sensitivity: list[Sensitivity] = []
    tolerances: dict[str, dict[str, float]] = {}
    floors: dict[str, float] | None = None

    def tolerance(self, backend: str, stage: str) -> float | None:
        """The largest relative error recorded as tolerable for a stage on a backend, capped; None where none was.

        Args:
            backend: what runs the stage.
            stage: one of the recipe.
        """
        recorded = self.tolerances.get(backend, self.floors or {}).get(stage)
        return None if recorded is None else min(recorded, self.largest_tolerance(stage))

    def largest_tolerance(self, stage: str) -> float:
        """The cap on whatever is recorded for a stage: by the error measured when it was calibrated, where that is known."""
        near = self.fidelity.get(stage)
        return LARGEST_TOLERANCE if near is None else min(LARGEST_TOLERANCE, TOLERANCE_FACTOR * near.relative_error)

    def with_tolerances(self, backend: str, tolerances: Mapping[str, float]) -> Self:
        """The record with what was measured on one backend in place of what was there of it, and of earlier versions."""
        capped = {stage: min(most, self.largest_tolerance(stage)) for stage, most in tolerances.items()}
        return self.model_copy(update={"tolerances": {**self.tolerances, backend: capped}, "floors": None})

    def refusal(self, backend: str, targets: Sequence[str] = (), stage: str | None = None) -> str | None:
        """Why a backend cannot take the bundle, or one of its stages.

        Args:
            backend: "openvino-bf16" is held to what "openvino" takes.
            targets: compute capabilities of GPUs that it would build for.
            stage: the one asked about; None is all of them.
        """
        for limit in self.limits:
            elsewhere = stage is not None and limit.scheme not in ("", self.recipe.get(stage))
            low = limit.below is not None and any(_capability(t) < _capability(limit.below) for t in targets)
            if limit.backend == backend.removesuffix("-bf16") and not elsewhere and (limit.below is None or low):
                return limit.says
        return None


def _capability(target: str) -> int:
    return int(target.removeprefix("sm_"))


def sensitivity_rows(
    found: Sequence[Sensitivity], made: CalibrationSpec | None = None
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: what each unit of layers costs; of a calibrated bundle, the precision it has there."""
    head = ["stage", "unit", "weights", "error alone", "kept sets", "logits", "next tokens"]
    rows = []
    for one in found:
        kept = "" if one.kept is None else f"{one.kept:.3f}"
        row = [one.stage, one.unit, f"{one.weights:,}", f"{one.error:.3%}", kept, f"{one.logits:.3%}"]
        row.append(f"{one.tokens:.1%}")
        if made is not None:
            row.append(made.recipe[one.stage] if one.quantised else made.source_precision)
        rows.append(row)
    return head + ["precision"] * (made is not None), rows
