"""The commands of `rediprune` that work with data: calibrate, sensitivity, report and evaluate."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from ..export.commands import Out, keep_ratios, needs_extra, stage_progress
from ..runtime.bundle import CalibrationSpec
from ..runtime.cli import BundleArgument, JsonOption, check_output_file, check_picture_path, sensitivity_table
from ..runtime.errors import RedipruneError

if TYPE_CHECKING:
    from .evaluate import Question, Score

_KEEPS = "1,0.5,0.25,0.15,0.1,0.05"
_RULES = "rediprune,diversity,relevance,random,uniform,pool2x2"


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "calibrate",
        epilog="""Examples:\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data photos/\n
    rediprune calibrate engines/llava -o engines/llava-mixed --recipe vision=int8,language=int8 --skip "*.down_proj"\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data questions.jsonl --samples 128 --ranges percentile\n
    rediprune calibrate engines/llava -o engines/llava-int8 --budget error=2%    (each stage's outputs)\n
    rediprune calibrate engines/llava -o engines/llava-int4 --recipe int4 --data questions.jsonl --budget accuracy=1""",
    )(needs_extra(calibrate))
    app.command(
        "report",
        epilog="""Examples:\n
    rediprune report engines/demo-fp32\n
    rediprune report engines/demo-fp32 engines/demo-int8 engines/demo-int4 --page calibration.md\n
    rediprune report engines/llava-int8 --data questions.jsonl --runs 0 --json""",
    )(needs_extra(report))
    app.command(
        "sensitivity",
        epilog="""Examples:\n
    rediprune sensitivity engines/demo-fp32\n
    rediprune sensitivity engines/llava --recipe language=int4 --data questions.jsonl --json""",
    )(needs_extra(sensitivity))
    app.command(
        "evaluate",
        epilog="""Examples:\n
    rediprune evaluate engines/demo-fp32 --plot accuracy.png\n
    rediprune evaluate engines/demo-fp32 --split test,unseen --backend ort,eager --rules rediprune --keep 1,0.15\n
    rediprune evaluate engines/llava --data questions.jsonl --keep 1,0.15 --out replies.jsonl --page accuracy.md""",
    )(evaluate)


def calibrate(
    bundle: BundleArgument,
    out: Out,
    recipe: Annotated[
        str, typer.Option(help="A form for every stage (int8), or STAGE=FORM; comma separated.")
    ] = "int8",
    data: Annotated[
        Path | None, typer.Option(help="A folder of pictures and videos, or a JSONL of questions; default: built in.")
    ] = None,
    samples: Annotated[int, typer.Option(help="At most this many samples.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the choice of samples.")] = 0,
    ranges: Annotated[str, typer.Option(help="Range of activations: minmax, percentile or entropy.")] = "minmax",
    alpha: Annotated[float, typer.Option(help="Of SmoothQuant: how much the weights take over of outliers.")] = 0.75,
    smooth: Annotated[bool, typer.Option("--smooth/--no-smooth", help="Use SmoothQuant.")] = True,
    skip: Annotated[
        list[str] | None, typer.Option(help="Leave layers of these names as they are, e.g. '*.down_proj'; repeat.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Refuse what this backend does not take.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="The most that may be lost: error=0.02 (of each stage's outputs) or accuracy=1 (points of right answers). "
            "As few layers as that takes stay in the source's precision."
        ),
    ] = None,
    questions: Annotated[int, typer.Option(help="Asked at keep 1 and 0.15 for a budget of accuracy.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Redo finished stages too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a quantised bundle of one in fp32 or fp16, which stays as it is. A finished stage is not redone."""
    from .calibrate import calibrate as run
    from .data import FEW
    from .recipes import FORMS

    with stage_progress(as_json) as report:
        made = run(
            bundle,
            out,
            recipe,
            data=data,
            samples=samples,
            seed=seed,
            ranges=ranges,
            alpha=alpha if smooth else None,
            skip=skip or (),
            backend=backend,
            budget=budget,
            questions=questions,
            force=force,
            progress=report,
        )
    record = made.manifest.calibration
    assert record is not None
    if as_json:
        print(json.dumps({"bundle": str(out)} | record.model_dump()))
        return
    console = Console()
    if int(record.data.get("samples", FEW)) < FEW and any(
        FORMS[form].data == "needed" for form in record.recipe.values()
    ):
        console.print(
            f"[yellow]{record.data['samples']} samples say little of what the model will see:[/yellow] give {FEW} or more "
            "with --data and --samples, or a form that needs none"
        )
    table = Table(
        "stage", "form", "cosine", "relative error", "layers left", "size", title="beside the source, held out"
    )
    for stage, form in record.recipe.items():
        near = record.fidelity[stage]
        numbers = ["not run here", ""] if near is None else [f"{near.cosine:.5f}", f"{near.relative_error:.2%}"]
        size = sum(made.path(file).stat().st_size for file in made.manifest.stages[stage].files)
        table.add_row(stage, form, *numbers, str(len(record.skipped.get(stage, []))), f"{size / 1e6:.1f} MB")
    console.print(table)
    if record.sensitivity:
        console.print(sensitivity_table(record.sensitivity, record))
    if budget is not None:
        console.print(_says_budget(record), highlight=False, soft_wrap=True)
    console.print(f"[bold]{out}[/bold]: {record.source} as {made.manifest.precision}", highlight=False, soft_wrap=True)
    for says in dict.fromkeys(limit.says for limit in record.limits):
        console.print(says, highlight=False, soft_wrap=True)


def _says_budget(record: CalibrationSpec) -> str:
    """What a budget came to, in a sentence."""
    from .budget import ACCURACY

    if record.budget.startswith(ACCURACY):
        shown = [f"{abs(n):.2f} points {'gained' if n < 0 else 'lost'} at keep {k}" for k, n in record.measured.items()]
    else:
        shown = [f"{error:.2%} of {stage}'s outputs lost" for stage, error in record.measured.items()]
    left = sum(not one.quantised for one in record.sensitivity)
    of = f"{left} of {len(record.sensitivity)} units stay in {record.source_precision}" if left else "every layer fits"
    return f"budget {record.budget}: {of}; {', '.join(shown)}"


def sensitivity(
    bundle: BundleArgument,
    recipe: Annotated[
        str, typer.Option(help="A form for every stage (int8), or STAGE=FORM; comma separated.")
    ] = "int8",
    data: Annotated[
        Path | None, typer.Option(help="A folder of pictures and videos, or a JSONL of questions; default: built in.")
    ] = None,
    samples: Annotated[int, typer.Option(help="At most this many samples.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the choice of samples.")] = 0,
    ranges: Annotated[str, typer.Option(help="Range of activations: minmax, percentile or entropy.")] = "minmax",
    alpha: Annotated[float, typer.Option(help="Of SmoothQuant: how much the weights take over of outliers.")] = 0.75,
    smooth: Annotated[bool, typer.Option("--smooth/--no-smooth", help="Use SmoothQuant.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Measure again.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the tables here (Markdown).")] = None,
    as_json: JsonOption = False,
) -> None:
    """What quantising each part of a bundle alone does to features, kept sets and answers.

    A part, or unit, is the layers that read one value. First come those that bring most for their size when they are left
    as they are: `rediprune calibrate --budget` chooses in this order.
    """
    from .budget import ERROR, by_worth
    from .calibrate import sensitivity as run

    _check_outputs(None, page)
    with stage_progress(as_json) as report:
        found = run(
            bundle,
            recipe,
            data=data,
            samples=samples,
            seed=seed,
            ranges=ranges,
            alpha=alpha if smooth else None,
            force=force,
            progress=report,
        )
    stages = list(dict.fromkeys(one.stage for one in found))
    found = [one for stage in stages for one in by_worth([one for one in found if one.stage == stage], ERROR)]
    if page is not None:
        from .page import write_sensitivity_page

        write_sensitivity_page(found, page, bundle, recipe, shlex.join(["rediprune", *sys.argv[1:]]))
    if as_json:
        print(json.dumps([one.model_dump() for one in found]))
        return
    for stage in stages:
        Console().print(sensitivity_table([one for one in found if one.stage == stage]))


def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        Path | None, typer.Option(help="JSONL of {image or video, question, answer, kind}; default: the built-in task.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, comma separated.")] = _KEEPS,
    rules: Annotated[str, typer.Option(help="Selection rules, comma separated.")] = _RULES,
    backend: Annotated[str, typer.Option(help="What runs the stages; several, comma separated, are compared.")] = "ort",
    images: Annotated[int, typer.Option(min=0, help="Pictures of the built-in task, about four questions each.")] = 100,
    clips: Annotated[int, typer.Option(min=0, help="Clips of the built-in task, likewise.")] = 40,
    split: Annotated[str, typer.Option(help="Splits of the built-in task: test, unseen, or test,unseen.")] = "test",
    train: Annotated[Path | None, typer.Option(help="Refuse questions that are in this JSONL too.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 8,
    frame_tolerance: Annotated[
        float | None, typer.Option(min=0, help="Encode only frames that differ from those before by more levels.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random rule.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads per stage; 0 leaves it to the backend.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep every reply here (JSONL); a rerun goes on from it.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against tokens and time here (PNG).")] = None,
    page: Annotated[Path | None, typer.Option(help="Write all tables here (Markdown), the plot beside it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy per kind of question, keep ratio, selection rule and backend; images and videos apart."""
    from .evaluate import evaluate as run

    keeps = keep_ratios(keep, "--keep")
    if (plot or page) and find_spec("matplotlib") is None:
        raise RedipruneError("--plot and --page need matplotlib; install it with: pip install 'rediprune[evaluate]'")
    if plot is not None:
        check_picture_path(plot, "--plot")
    _check_outputs(out, page)
    splits = split.split(",")
    if not set(splits) <= {"test", "unseen"}:
        raise RedipruneError(f"--split is test, unseen or test,unseen, not '{split}'")
    if data is None and not images and not clips:
        raise RedipruneError("there is nothing to ask; give --images or --clips more than 0")

    scores: list[Score] = []
    with TemporaryDirectory() as made, _progress(as_json) as report:
        for name, questions in _sets(data, train, splits, images, clips, Path(made), report).items():
            for runner in backend.split(","):
                scores += run(
                    bundle,
                    questions,
                    keeps,
                    rules.split(","),
                    runner,
                    out,
                    frames,
                    seed,
                    threads,
                    progress=report,
                    data=name,
                    frame_tolerance=frame_tolerance,
                )
    if plot is not None:
        from .plot import plot_scores

        plot_scores(scores, plot, bundle.name)
    if page is not None:
        from .page import write_page

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


def report(
    bundle: Annotated[list[Path], typer.Argument(help="A bundle, and those made of it; alone: all beside it.")],
    data: Annotated[
        Path | None, typer.Option(help="JSONL of {image or video, question, answer, kind}; default: the built-in task.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Pictures of the built-in task, about four questions each.")] = 100,
    clips: Annotated[int, typer.Option(min=0, help="Clips of the built-in task, likewise.")] = 40,
    keep: Annotated[str, typer.Option(help="Keep ratios of answers and times, comma separated.")] = "1,0.15",
    kept: Annotated[str, typer.Option(help="Keep ratios at which kept sets are compared.")] = "0.5,0.25,0.15,0.1",
    samples: Annotated[int, typer.Option(min=1, help="Questions on which stages and kept sets are compared.")] = 32,
    backend: Annotated[str, typer.Option(help="What runs the stages.")] = "ort",
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 8,
    threads: Annotated[int, typer.Option(min=0, help="Threads per stage; 0 leaves it to the backend.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples.")] = 0,
    runs: Annotated[int, typer.Option(min=0, help="Turns of the bench; 0 leaves times and memory out.")] = 3,
    limit: Annotated[float, typer.Option(help="Seconds that one of these may take.")] = 600,
    tolerance: Annotated[float, typer.Option(min=0, help="Points of accuracy that may be lost.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Keep every reply here (JSONL); a rerun goes on from it.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the report here (Markdown), its picture beside it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Calibrated bundles beside their source: size, times, nearness, kept sets, answers; and which one to take.

    How far the stages were off is noted in the calibrated bundles: `rediprune validate` holds them to it.
    """
    from .report import find_bundles
    from .report import report as run
    from .report_page import figures, write_page

    keeps, ratios = keep_ratios(keep, "--keep"), keep_ratios(kept, "--kept")
    if page is not None and find_spec("matplotlib") is None:
        raise RedipruneError("--page needs matplotlib; install it with: pip install 'rediprune[evaluate]'")
    _check_outputs(out, page)
    if data is None and not images and not clips:
        raise RedipruneError("there is nothing to ask; give --images or --clips more than 0")
    bundles = find_bundles(bundle)
    with TemporaryDirectory() as made, _progress(as_json) as say:
        document = run(
            bundles,
            _sets(data, None, ["test"], images, clips, Path(made), say),
            keeps=keeps,
            kept=ratios,
            samples=samples,
            backend=backend,
            frames=frames,
            threads=threads,
            seed=seed,
            runs=runs,
            limit=limit,
            tolerance=tolerance,
            out=out,
            progress=say,
        )
    if page is not None:
        write_page(document, page, shlex.join(["rediprune", *sys.argv[1:]]))
    if as_json:
        print(json.dumps(document))
        return
    console = Console()
    head, rows = figures(document)
    table = Table(*head, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for name, why in document["absent"].items():
        console.print(f"left out: {name}: {why}", highlight=False)
    console.print(document["recommendation"], highlight=False, soft_wrap=True)


def _check_outputs(out: Path | None, page: Path | None) -> None:
    """Refuse files that cannot be written, or a page that is no Markdown, before any work is done for them."""
    for path, option in ((out, "--out"), (page, "--page")):
        if path is not None:
            check_output_file(path, option)
    if page is not None and page.suffix != ".md":
        raise RedipruneError(f"--page takes a file ending in .md, not '{page}'")


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar, told what is being done, number and of how many."""
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("")
        yield lambda label, at, total: bar.update(task, description=label, completed=at, total=total)


def _sets(
    data: Path | None,
    train: Path | None,
    splits: list[str],
    images: int,
    clips: int,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> "dict[str, list[Question]]":
    """The questions by name of their set: images and videos are judged apart, for they cost and score differently."""
    from .dataset import write_set
    from .evaluate import check_disjoint, read_questions

    progress("reading the questions", 0, 1)
    if data is not None:
        sources = {"": read_questions(data)}
    else:
        names = {"test": "", "unseen": ", unseen pairs"}
        made = {s: write_set(folder / s, s, images=images, clips=clips) for s in splits}
        sources = {names[s]: read_questions(path, look=False) for s, path in made.items()}
    if train is not None:
        known = read_questions(train, look=False)
        for questions in sources.values():
            check_disjoint(questions, known)
    sets = {}
    for suffix, questions in sources.items():
        sets["images" + suffix] = [q for q in questions if not q.video]
        sets["videos" + suffix] = [q for q in questions if q.video]
    return {name: questions for name, questions in sets.items() if questions}


def _first_backend(scores: "list[Score]") -> "list[Score]":
    """For each score the one of the same questions, rule and keep with the backend named first."""
    firsts: dict[tuple[str, str, float], Score] = {}
    return [firsts.setdefault((score.data, score.rule, score.keep), score) for score in scores]


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
                f"{score.keep:g}",
                f"{score.visual_tokens:.0f}",
                f"{100 * score.accuracy:.1f}",
                f"{100 * low:.0f} – {100 * high:.0f}",
                f"{score.first_token * 1e3:.1f}",
                f"{score.prefill_macs / 1e9:.2f}",
                *agreeing,
            )
            if score is first:
                shares = (f"{100 * score.right[kind] / score.asked[kind]:.0f}" for kind in kinds)
                by_kind.add_row(score.rule, f"{score.keep:g}", *shares)
        console.print(table)
        if len(kinds) > 1:
            console.print(by_kind)
