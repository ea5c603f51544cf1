"""The settings of a training run: everything that decides the weights."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    tower_steps: int = 1500
    steps: int = 6200  # of the whole stage
    pruned_steps: int = 1700
    images: int = 48  # new pictures a step; each comes back ROWS times, with other questions
    clips: int = 4  # new clips a step, likewise
    delay: int = 150  # steps between two uses of a picture
    easy: int = 2500  # steps of the curriculum
    rate: float = 1e-3  # peak learning rate
    pruned_rate: float = 6e-4
    warmup: int = 300
    decay: float = 0.05
    average: float = 0.999  # of the moving average of the weights, which is what is saved
    seed: int = 0
    start: str = ""  # a checkpoint folder to start from, instead of random weights
    blind: bool = False  # text only: the baseline that never sees a picture
    frozen: bool = False  # the tower learns nothing more, and each picture is encoded once: less than half the work
    focus: str = ""  # kinds of questions to ask yet more often, comma separated

    @property
    def total(self) -> int:
        return self.tower_steps + self.steps + self.pruned_steps

    def stage(self, step: int) -> str:
        if step < self.tower_steps:
            return "tower"
        return "whole" if step < self.tower_steps + self.steps else "pruned"

    def rate_at(self, step: int) -> float:
        """Learning rate: in each stage linear warm-up, then cosine to 2 % (constant in the tower stage)."""
        stage = self.stage(step)
        if stage == "tower":
            return self.rate * min(1.0, (step + 1) / self.warmup)
        done, length, peak = step - self.tower_steps, self.steps, self.rate
        if stage == "pruned":
            done, length, peak = done - self.steps, self.pruned_steps, self.pruned_rate
        ramp = min(1.0, (done + 1) / self.warmup)
        return peak * ramp * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / max(1, length))))
