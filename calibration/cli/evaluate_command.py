"""`rediprune evaluate`: accuracy against kept tokens."""

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from ...runtime.cli.arguments import (
    BundleArgument,
    JsonOption,
    check_outputs,
    check_picture_path,
    keep_ratios,
)
from ...runtime.cli.progress import one_bar
from ...runtime.errors import RedipruneError
from .question_sets import question_sets

if TYPE_CHECKING:
    from ..evaluation.scores import Score


_KEEPS = "1,0.5,0.25,0.15,0.1,0.05"
_SPLITS = ("test", "unseen", "crowd", "cells")
_RULES = "rediprune,diversity,relevance,random,uniform,pool2x2"


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "evaluate",
        epilog="""Examples:\n
    rediprune evaluate engines/demo-fp32 --plot accuracy.png\n
    rediprune evaluate engines/demo-fp32 --split test,unseen --backend ort,eager --rules rediprune --keep 1,0.15\n
    rediprune evaluate engines/llava --data questions.jsonl --keep 1,0.15 --out replies.jsonl --page accuracy.md""",
    )(evaluate)


def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        Path | None, typer.Option(help="JSONL of {image or video, question, answer, kind}; default: the built-in task.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, comma separated.")] = _KEEPS,
    rules: Annotated[str, typer.Option(help="Selection rules, comma separated.")] = _RULES,
    backend: Annotated[
        str, typer.Option(help="What runs the stages; several, comma separated, are compared.")
    ] = "auto",
    images: Annotated[int, typer.Option(min=0, help="Pictures of the built-in task, about four questions each.")] = 100,
    clips: Annotated[int, typer.Option(min=0, help="Clips of the built-in task, likewise.")] = 40,
    split: Annotated[
        str, typer.Option(help="Splits of the built-in task, comma separated: test, unseen, crowd, cells.")
    ] = "test",
    train: Annotated[Path | None, typer.Option(help="Refuse questions that are in this JSONL too.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 8,
    frame_tolerance: Annotated[
        float | None, typer.Option(min=0, help="Encode only frames that differ from those before by more levels.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Positions of kept tokens: compact or original. Default: the bundle's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random rule.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads per stage; 0 leaves it to the backend.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep every reply here (JSONL); a rerun goes on from it.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against tokens and time here (PNG).")] = None,
    page: Annotated[Path | None, typer.Option(help="Write all tables here (Markdown), the plot beside it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy per kind of question, keep ratio, selection rule and backend; images and videos apart."""
    from ..evaluation.evaluate import EvaluationOptions
    from ..evaluation.evaluate import evaluate as run

    keeps = keep_ratios(keep, "--keep")
    if (plot or page) and find_spec("matplotlib") is None:
        raise RedipruneError("--plot and --page need matplotlib; install it with: pip install 'rediprune[plot]'")
    if plot is not None:
        check_picture_path(plot, "--plot")
    check_outputs(out, page)
    splits = split.split(",")
    if not set(splits) <= {*_SPLITS}:
        raise RedipruneError(f"--split takes {', '.join(_SPLITS)}, separated by commas, not '{split}'")
    if data is None and not images and not clips:
        raise RedipruneError("there is nothing to ask; give --images or --clips more than 0")

    scores: list[Score] = []
    with TemporaryDirectory() as made, one_bar(as_json) as report:
        for name, questions in question_sets(data, train, splits, images, clips, Path(made), report).items():
            for runner in backend.split(","):
                scores += run(
                    bundle,
                    questions,
                    keeps,
                    rules.split(","),
                    EvaluationOptions(runner, frames, frame_tolerance, seed, threads, positions=positions),
                    data=name,
                    out=out,
                    progress=report,
                )
    if plot is not None:
        from ..evaluation.evaluation_plot import plot_scores

        plot_scores(scores, plot, bundle.name)
    if page is not None:
        from ..evaluation.evaluation_page import write_page

        write_page(scores, page, bundle, shlex.join(["rediprune", *sys.argv[1:]]))
    if as_json:
        firsts = _first_backend(scores)
        print(
            json.dumps(
                [s.document() | {"same_answers": s.same_answers(f)} for s, f in zip(scores, firsts, strict=True)]
            )
        )
        return
    _print(Console(), scores)


def _first_backend(scores: "list[Score]") -> "list[Score]":
    """For each score the one of the same questions, rule and keep with the backend named first."""
    firsts: dict[tuple[str, str, float], Score] = {}
    return [firsts.setdefault((score.data, score.rule, score.keep), score) for score in scores]


def _keep(keep: float) -> str:
    """A ratio, or that the rule says it."""
    return f"{keep:g}" if keep else "auto"


def _print(console: Console, scores: "list[Score]") -> None:
    """Two tables for each set: accuracy with what it took, and accuracy by kind of question."""
    several = len({score.backend for score in scores}) > 1
    firsts = _first_backend(scores)
    for name in dict.fromkeys(score.data for score in scores):
        mine = [(score, first) for score, first in zip(scores, firsts, strict=True) if score.data == name]
        kinds = sorted(mine[0][0].asked)
        table = Table("rule", "keep", "tokens", "%", "95 %", "first token, ms", "prefill, GMAC", box=SIMPLE_HEAD)
        table.title = f"{name}, {len(mine[0][0].replies)} questions"
        by_kind = Table(
            Column("rule", min_width=9), "keep", *(Column(k, overflow="fold") for k in kinds), box=SIMPLE_HEAD
        )
        if several:
            table.add_column("backend")
            table.add_column(f"as {scores[0].backend}")
        for score, first in mine:
            low, high = score.interval()
            agreeing = (score.backend, f"{score.same_answers(first)} of {len(score.replies)}") if several else ()
            table.add_row(
                score.rule,
                _keep(score.keep),
                f"{score.visual_tokens:.0f}",
                f"{100 * score.accuracy:.1f}",
                f"{100 * low:.0f} – {100 * high:.0f}",
                f"{score.first_token * 1e3:.1f}",
                f"{score.prefill_macs / 1e9:.2f}",
                *agreeing,
            )
            if score is first:
                shares = (f"{100 * score.right[kind] / score.asked[kind]:.0f}" for kind in kinds)
                by_kind.add_row(score.rule, _keep(score.keep), *shares)
        console.print(table)
        if len(kinds) > 1:
            console.print(by_kind)
