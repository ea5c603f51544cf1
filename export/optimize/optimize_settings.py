"""What `rediprune optimize` is asked for."""

from dataclasses import dataclass
from pathlib import Path

from ...calibration.budget import ACCURACY, ERROR, Budget, parse_budget
from ...runtime.errors import RedipruneError

EXACT = "exact"
TARGETS = ("first-token", "throughput", "size")
# Further tokens that count with the first, so that a millisecond saved there does not buy slow decoding; and the whole
# answer that throughput is of.
_FURTHER_TOKENS = {"first-token": 4, "throughput": 64}
# A stage may be off by so much where a budget is of accuracy: on the demo checkpoint accuracy suffers beyond it, and
# questions may not show it (docs/measurements/cpu-forms.md).
LARGEST_ERROR = 0.12


@dataclass(frozen=True)
class OptimizeSettings:
    """What is optimised, and within which bounds.

    Attributes:
        budget: "exact" keeps the source's precision; "error=2%" bounds the relative error of each stage; "accuracy=1" the
            points of accuracy lost, and each stage's error by `LARGEST_ERROR`.
        target: what is made least, one of `TARGETS`.
        memory: bytes that the weights may take when loaded; None is no bound.
        keep: ratio of visual tokens that is timed; None is the bundle's default.
        data: what is calibrated with and asked, as `rediprune calibrate` takes it; None is the built-in set.
        samples: to calibrate with.
        questions: asked to measure accuracy.
        threads: of every stage; 0 leaves it to the backend.

    Raises:
        RedipruneError: a setting that is none.
    """

    budget: str = "accuracy=1"
    target: str = "first-token"
    memory: int | None = None
    keep: float | None = None
    data: Path | None = None
    samples: int = 16
    questions: int = 60
    threads: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise RedipruneError(f"--target is one of {', '.join(TARGETS)}, not '{self.target}'")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise RedipruneError(f"--keep is a ratio in (0, 1], not {self.keep}")
        if self.memory is not None and self.memory < 1:
            raise RedipruneError("--memory must be above 0")
        if self.bound is not None and self.bound.kind == ACCURACY and self.data is not None and self.data.is_dir():
            raise RedipruneError(
                f"folder '{self.data}' has no questions with answers; give a JSONL, or --budget error=2%"
            )

    @property
    def bound(self) -> Budget | None:
        """The budget; None is "exact"."""
        return None if self.budget == EXACT else parse_budget(self.budget)

    @property
    def largest_error(self) -> float:
        """The relative error that a stage may have; 0 where the source's precision is kept."""
        if self.bound is None:
            return 0.0
        return self.bound.limit if self.bound.kind == ERROR else LARGEST_ERROR

    @property
    def further_tokens(self) -> int:
        """Tokens after the first whose time counts."""
        return _FURTHER_TOKENS.get(self.target, 0)
