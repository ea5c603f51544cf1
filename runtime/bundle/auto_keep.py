"""What the manifest says of `keep="auto"`: where the choice of tokens ends, and what that was measured to cost."""

from typing import Literal

from pydantic import Field

from .strict_model import StrictModel

Scope = Literal["frame", "clip"]
SCOPES: tuple[Scope, ...] = ("frame", "clip")


class AutoKeep(StrictModel):
    """Thresholds that `rediprune calibrate --keep-auto` found.

    Attributes:
        thresholds: scope → the score below which no further token is kept.
        most: the largest ratio of tokens kept, whatever the threshold says.
        budget: points of accuracy that might be lost against keeping all tokens.
        accuracy, baseline: scope → per cent correct with the threshold, and with all tokens kept, on the calibration questions.
        tokens: scope → ratio of tokens kept, the mean.
        questions: how many were asked.
        data: their name.
    """

    thresholds: dict[Scope, float]
    most: float = Field(gt=0, le=1)
    budget: float
    accuracy: dict[Scope, float]
    baseline: dict[Scope, float]
    tokens: dict[Scope, float]
    questions: int
    data: str
