"""How much accuracy a calibrated bundle may lose, and the search for the fewest layers left out to keep it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..runtime.bundle import Sensitivity
from ..runtime.errors import RedipruneError

ERROR, ACCURACY = "error", "accuracy"
KEEP_RATIOS = (1.0, 0.15)  # at which the questions of a budget of accuracy are asked


@dataclass(frozen=True)
class Budget:
    """The most that may be lost.

    Attributes:
        kind: ERROR bounds the relative error of each stage's outputs on the held-out samples, of the worst of them;
            ACCURACY bounds the percentage points of correct answers lost at any of `KEEP_RATIOS`.
        limit: the bound, a fraction for ERROR and points for ACCURACY.
    """

    kind: str
    limit: float

    def __str__(self) -> str:
        return f"{self.kind}={self.limit:g}"


def parse_budget(text: str) -> Budget:
    """Read "error=0.02", "error=2%" or "accuracy=1" (points).

    Raises:
        RedipruneError: anything else, or a number that is no budget.
    """
    kind, _, number = text.partition("=")
    if kind not in (ERROR, ACCURACY):
        raise RedipruneError(f"--budget takes error=RELATIVE or accuracy=POINTS, e.g. error=0.02, not '{text}'")
    try:
        limit = float(number.removesuffix("%"))
    except ValueError as error:
        raise RedipruneError(f"--budget {kind}= takes a number, not '{number}'") from error
    if kind == ERROR and number.endswith("%"):
        limit /= 100
    least, below = (math.ulp(0.0), 1.0) if kind == ERROR else (0.0, 100.0)
    if not least <= limit < below:
        says = "more than 0 and less than 1 (or 100 %)" if kind == ERROR else "0 or more, and less than 100 points"
        raise RedipruneError(f"a budget of {kind} must be {says}, not {number}")
    return Budget(kind, limit)


def by_benefit_per_weight(sensitivities: Sequence[Sensitivity], kind: str) -> list[Sensitivity]:
    """Sort layer groups: those first that, left in higher precision, bring most for their size.

    Args:
        sensitivities: of the groups.
        kind: ERROR goes by the error of the stage's outputs, ACCURACY by that of the logits.
    """

    def benefit_per_weight(one: Sensitivity) -> float:
        # Errors of groups are nearly uncorrelated, so their squares add up; weights are what higher precision costs.
        return (one.error if kind == ERROR else one.logits) ** 2 / one.weights

    return sorted(sensitivities, key=benefit_per_weight, reverse=True)


def fewest_excluded(count: int, loss: Callable[[int], float], limit: float) -> int:
    """Search how many layer groups, the first of their order, have to stay in higher precision.

    By bisection, as `loss` is measured on the whole bundle each time. With none of them left out the loss was found to
    be above the limit before this is called; with all of them the bundle is the baseline.

    Args:
        count: number of groups.
        loss: number of groups left out → what the bundle then loses.
        limit: the most that may be lost.

    Returns:
        A number for which the loss was measured to be within the limit, or `count`.
    """
    too_few, enough = 0, count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if loss(middle) <= limit:
            enough = middle
        else:
            too_few = middle
    return enough
