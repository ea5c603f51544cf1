"""What a calibration is asked for, checked as far as that needs no bundle."""

from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import RedipruneError
from .budget import ACCURACY, Budget

# SmoothQuant's paper has 0.5 to 0.75 for most models. More fits the samples too closely: chosen per input by the least
# error, it went up to 0.9, and another sample's channels then left their range (logits 23 % off, against 4.8 %; the
# demo checkpoint).
DEFAULT_SMOOTHING = 0.75


@dataclass(frozen=True)
class CalibrationSettings:
    """What `calibrate` and `sensitivity` are asked for.

    Attributes:
        recipe: a shorthand ("int8") or STAGE=SCHEME, separated by commas (`recipes.parse_recipe`).
        data: a JSONL of questions, or a folder of images and videos; None is the built-in set.
        samples: the largest number of samples to calibrate with.
        seed: selects the samples, and draws the built-in set.
        ranges: which magnitude the largest integer of an activation stands for, a key of `RANGES`.
        smoothing: SmoothQuant's migration strength in [0, 1]; None does without.
        exclude_layers: patterns of layers that stay in the baseline's precision, matched with "stage/layer" and with
            the layer alone: "language/head", "vision/*.mlp.fc2", "*.down_proj".
        budget: the most that may be lost; as few layers as that takes stay in the baseline's precision.
        questions: the largest number of questions asked to measure a budget of accuracy.
        gptq: round INT4 weights by GPTQ, which observes activations and takes minutes; without, to the nearest.

    Raises:
        RedipruneError: a setting that no bundle could be calibrated with; the message names it.
    """

    recipe: str = "int8"
    data: Path | None = None
    samples: int = 64
    seed: int = 0
    ranges: str = "minmax"
    smoothing: float | None = DEFAULT_SMOOTHING
    exclude_layers: tuple[str, ...] = ()
    budget: Budget | None = None
    questions: int = 200
    gptq: bool = True

    def __post_init__(self) -> None:
        from .quantize.activation_ranges import RANGES  # numpy: the command line reads the defaults without it

        if self.ranges not in RANGES:
            raise RedipruneError(f"ranges '{self.ranges}' are not one of {', '.join(RANGES)}")
        if self.samples < 1:
            raise RedipruneError(f"samples must be at least 1, not {self.samples}")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise RedipruneError(f"smoothing must lie in [0, 1], not {self.smoothing}")
        if self.budget is not None and self.questions < 1:
            raise RedipruneError(f"questions must be at least 1, not {self.questions}")
        if self.measures_accuracy and self.data is not None and self.data.is_dir():
            raise RedipruneError(
                f"folder '{self.data}' has no questions with answers; give a JSONL, or --budget error=0.02"
            )

    @property
    def measures_accuracy(self) -> bool:
        """Whether the budget is one of accuracy, for which questions are asked."""
        return self.budget is not None and self.budget.kind == ACCURACY

    def argv(self) -> list[str]:
        """The options of `rediprune calibrate` that ask for the same, for the manifest and to make it again."""
        options = ["--recipe", self.recipe, "--samples", str(self.samples), "--seed", str(self.seed)]
        options += ["--ranges", self.ranges]
        options += ["--smoothing", str(self.smoothing)] if self.smoothing is not None else ["--no-smooth"]
        options += [] if self.gptq else ["--no-gptq"]
        options += [word for pattern in self.exclude_layers for word in ("--skip", pattern)]
        options += ["--budget", str(self.budget)] if self.budget is not None else []
        options += ["--questions", str(self.questions)] if self.measures_accuracy else []
        options += ["--data", str(self.data.resolve())] if self.data is not None else []
        return options
