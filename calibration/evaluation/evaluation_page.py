"""What was measured as a Markdown page: the scores of an evaluation with their plot, sensitivities."""

from collections.abc import Sequence
from pathlib import Path

from ...runtime.bundle import Bundle, Sensitivity, sensitivity_rows
from .evaluation_plot import LABELS, plot_scores
from .markdown import markdown_table
from .scores import Score

_NOTICED = 0.05  # a kind of question that loses this share of its answers is named


def write_page(scores: Sequence[Score], path: Path, folder: Path, command: str) -> None:
    """Write the page and, under the same name, the plot (PNG).

    Args:
        scores: of one or more sets of questions and backends; tables show the backend named first.
        path: of the page, ending in .md.
        folder: the bundle that was asked.
        command: what was called, to be called again.
    """
    bundle = Bundle.open(folder)
    picture = path.with_suffix(".png")
    plot_scores(scores, picture, bundle.folder.name)
    backends = list(dict.fromkeys(score.backend for score in scores))
    parts = [
        "# Accuracy against kept tokens",
        f"{_made_by(command, bundle)}, on `{backends[0]}`.",
        "Answers are greedy and must match word for word. Tokens are those of a request, before and after pruning. "
        "Time to first token is the median, on the machine of the run, for a picture or video not seen before. Prefill "
        "counts multiply-adds of the decoder. Intervals are Wilson's, 95 %.",
        f"![accuracy against tokens and time]({picture.name})",
    ]
    for data in dict.fromkeys(score.data for score in scores):
        mine = [score for score in scores if score.data == data and score.backend == backends[0]]
        asked = ", ".join(f"{kind} {number}" for kind, number in sorted(mine[0].asked.items()))
        parts += [
            f"## {data}",
            f"{len(mine[0].replies)} questions ({asked}).",
            _by_rule(mine),
            _losses(mine),
            f"<details><summary>every run, by kind of question</summary>\n\n{_everything(mine)}\n\n</details>",
        ]
    if len(backends) > 1:
        parts += ["## Backends", f"Replies word for word as those of `{backends[0]}`:", _agreement(scores, backends)]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def write_sensitivity_page(found: Sequence[Sensitivity], path: Path, folder: Path, recipe: str, command: str) -> None:
    """Write a table for each stage.

    Args:
        found: in the order of the tables.
        path: of the page, ending in .md.
        folder: the bundle that was asked.
        recipe: what was measured.
        command: what was called, to be called again.
    """
    parts = [
        f"# What quantising each part alone costs: {recipe}",
        f"{_made_by(command, Bundle.open(folder))}.",
        "A unit is the layers that read one value. Error alone: of the stage's outputs, the worst of the samples held out. "
        "Kept sets: their overlap (Jaccard) at keep 0.15. Logits: relative error, the mean. Next tokens: those that stay the "
        "same. First come those that bring most for their size when they are left as they are.",
    ]
    for stage in dict.fromkeys(one.stage for one in found):
        mine = [one for one in found if one.stage == stage]
        parts += [f"## {stage}", markdown_table(*sensitivity_rows(mine))]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _made_by(command: str, bundle: Bundle) -> str:
    """The command that makes a page, and of what: the checkpoint by its name, without the folders it is in."""
    made, source = bundle.manifest, bundle.manifest.source
    name = Path(source.name).name if Path(source.name).is_absolute() else source.name
    return (
        f"Made by\n\n```\n{command}\n```\n\nof a {made.precision} bundle of `{name}` (config "
        f"{source.config_sha256[:12]}), {made.family_name}"
    )


def _by_rule(scores: Sequence[Score]) -> str:
    """Accuracy with its interval, a row for each rule, a column for each keep."""
    keeps = sorted({score.keep for score in scores}, reverse=True)
    cells = {(score.rule, score.keep): _accuracy(score) for score in scores}
    rows = [
        [label, *(cells.get((rule, keep), "") for keep in keeps)]
        for rule, label in LABELS.items()
        if any(score.rule == rule for score in scores)
    ]
    return markdown_table(["accuracy, %", *map(_keep, keeps)], rows)


def _keep(keep: float) -> str:
    return f"{keep:g}" if keep else "auto"


def _accuracy(score: Score) -> str:
    low, high = score.interval()
    return f"**{100 * score.accuracy:.1f}** ({100 * low:.1f} – {100 * high:.1f})"


def _losses(scores: Sequence[Score]) -> str:
    """Where ReDiPrune hurts: kinds of questions that lose answers to pruning, beside what they were unpruned."""
    ours = {score.keep: score for score in scores if score.rule == "rediprune"}
    whole = ours.pop(1.0, None)
    if whole is None or not ours:
        return ""
    lines = []
    for keep, score in sorted(ours.items(), reverse=True):
        lost = []
        for kind, asked in whole.asked.items():
            before, after = whole.right[kind], score.right[kind]
            if before - after >= max(1, _NOTICED * asked):
                lost.append(f"{kind} {100 * before / asked:.0f} → {100 * after / asked:.0f}")
        change = 100 * (score.accuracy - whole.accuracy)
        lines.append(f"- keep {keep:g}: {change:+.1f} points; {', '.join(sorted(lost)) or 'no kind loses 5 points'}")
    return "ReDiPrune against unpruned, and the kinds that lose 5 points or more:\n\n" + "\n".join(lines)


def _everything(scores: Sequence[Score]) -> str:
    kinds = sorted(scores[0].asked)
    rows = []
    for s in scores:
        low, high = s.interval()
        rows.append(
            [
                s.rule,
                _keep(s.keep),
                f"{s.visual_tokens:.0f} of {s.all_tokens:.0f}",
                f"{100 * s.accuracy:.1f}",
                f"{100 * low:.1f} – {100 * high:.1f}",
                *(f"{100 * s.right[kind] / s.asked[kind]:.0f}" for kind in kinds),
                f"{s.first_token * 1e3:.1f}",
                f"{s.select * 1e3:.2f}",
                f"{s.prefill_macs / 1e9:.3f}",
            ]
        )
    return markdown_table(
        ["rule", "keep", "tokens", "%", "95 %", *kinds, "first token, ms", "select, ms", "prefill, GMAC"], rows
    )


def _agreement(scores: Sequence[Score], backends: Sequence[str]) -> str:
    first = {(s.data, s.rule, s.keep): s for s in scores if s.backend == backends[0]}
    rows = []
    for name in dict.fromkeys(score.data for score in scores):
        for backend in backends[1:]:
            mine = [score for score in scores if score.data == name and score.backend == backend]
            twins = [first[s.data, s.rule, s.keep] for s in mine]
            same = sum(s.same_answers(twin) for s, twin in zip(mine, twins, strict=True))
            asked = sum(len(s.replies) for s in mine)
            right = sum(sum(s.right.values()) for s in mine)
            ours = sum(sum(s.right.values()) for s in twins)
            rows.append([name, backend, str(len(mine)), f"{same} of {asked}", f"{right}, {ours}"])
    return markdown_table(["questions", "backend", "runs", "same answers", f"right, and on {backends[0]}"], rows)
