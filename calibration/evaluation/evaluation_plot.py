"""Accuracy against kept tokens and against time, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from .scores import Score
from .selection_rules import ONE_KEEP

LABELS = {
    "rediprune": "ReDiPrune",
    "diversity": "diversity only (α = 0)",
    "relevance": "relevance only",
    "original": "ReDiPrune, original positions",
    "clip": "ReDiPrune, one budget for all frames",
    "clip-half": "one budget, half of it for all frames alike",
    "auto": "ReDiPrune, keep auto",
    "auto-clip": "ReDiPrune, keep auto, one budget",
    "divprune": "DivPrune",
    "cdpruner": "CDPruner",
    "visionzip": "VisionZip's dominant tokens",
    "random": "random",
    "uniform": "uniform grid",
    "pool2x2": "2 × 2 pooling after the projector",
    "downsample": "picture down-sampled",
}


def plot_scores(scores: Sequence[Score], path: Path, title: str) -> None:
    """Write a PNG with two panels for each set of questions; bars are 95 % confidence intervals.

    Scores of the backend named first only.
    """
    from matplotlib.figure import Figure

    sets = {name: [s for s in scores if s.data == name and s.backend == scores[0].backend] for name in _sets(scores)}
    figure = Figure(figsize=(11, 0.6 + 3.8 * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), 2, sharey="row", squeeze=False)
    for (name, mine), (tokens, time) in zip(sets.items(), panels, strict=True):
        whole = [score for score in mine if score.keep >= 1]
        for rule, label in LABELS.items():
            line = sorted((s for s in mine if s.rule == rule and s.keep < 1), key=lambda s: s.visual_tokens)
            if not line:
                continue
            line += whole if rule not in ONE_KEEP else []
            accuracy = [100 * s.accuracy for s in line]
            errors = [
                [100 * max(0.0, s.accuracy - s.interval()[0]) for s in line],
                [100 * max(0.0, s.interval()[1] - s.accuracy) for s in line],  # below 0 by rounding where all are right
            ]
            style = {"marker": "o", "capsize": 2, "linewidth": 2.4 if rule == "rediprune" else 1.2, "label": label}
            tokens.errorbar([100 * s.visual_tokens / s.all_tokens for s in line], accuracy, errors, **style)
            time.errorbar([1e3 * s.first_token for s in line], accuracy, errors, **style)
        tokens.set_xscale("log")
        ticks = sorted({round(100 * s.visual_tokens / s.all_tokens) for s in mine})
        tokens.set_xticks(ticks, [f"{t}" for t in ticks])
        tokens.minorticks_off()
        tokens.set_title(f"{name}, {len(mine[0].replies)} questions", loc="left", fontsize=10)
        tokens.set_xlabel("visual tokens kept, %")
        tokens.set_ylabel("accuracy, %")
        time.set_xlabel("time to first token, ms (median)")
        for axis in (tokens, time):
            axis.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def _sets(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(score.data for score in scores))
