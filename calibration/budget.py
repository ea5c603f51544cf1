"""How much a calibrated bundle may lose, and which layers stay in higher precision for that."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..runtime.bundle import Sensitivity
from ..runtime.errors import RedipruneError

ERROR, ACCURACY = "error", "accuracy"
KEEPS = (1.0, 0.15)  # at which questions are asked


@dataclass(frozen=True)
class Budget:
    """The most that may be lost.

    Attributes:
        kind: "error": of each stage's outputs on the samples held out, relative, the worst; "accuracy": points of right
            answers at any of `KEEPS`.
        most: so much.
    """

    kind: str
    most: float

    def __str__(self) -> str:
        return f"{self.kind}={self.most:g}"


def parse_budget(text: str) -> Budget:
    """ "error=0.02", "error=2%" or "accuracy=1" (points).

    Raises:
        RedipruneError: anything else, or a number that is no budget.
    """
    kind, _, number = text.partition("=")
    if kind not in (ERROR, ACCURACY):
        raise RedipruneError(f"--budget takes error=RELATIVE or accuracy=POINTS, e.g. error=0.02, not '{text}'")
    try:
        most = float(number.removesuffix("%"))
    except ValueError as error:
        raise RedipruneError(f"--budget {kind}= takes a number, not '{number}'") from error
    if kind == ERROR and number.endswith("%"):
        most /= 100
    least, below = (math.ulp(0.0), 1.0) if kind == ERROR else (0.0, 100.0)
    if not least <= most < below:
        says = "more than 0 and less than 1 (or 100 %)" if kind == ERROR else "0 or more, and less than 100 points"
        raise RedipruneError(f"a budget of {kind} must be {says}, not {number}")
    return Budget(kind, most)


def by_worth(found: Sequence[Sensitivity], kind: str) -> list[Sensitivity]:
    """Those first whose weights bring most in higher precision: squared errors add up, weights are what it costs."""

    def worth(one: Sensitivity) -> float:
        return (one.error if kind == ERROR else one.logits) ** 2 / one.weights

    return sorted(found, key=worth, reverse=True)


def fewest(count: int, loss: Callable[[int], float], most: float) -> int:
    """How many of `count` units, the first of their order, have to stay in higher precision.

    Found by bisection, `loss` being measured a handful of times; none of them was too much before this is called, and all
    of them is what the source is.

    Returns:
        A number for which `loss` was measured to be at most `most`, or `count`.
    """
    too_few, enough = 0, count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if loss(middle) <= most:
            enough = middle
        else:
            too_few = middle
    return enough
