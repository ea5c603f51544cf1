"""The commands of `rediprune` that work with data: calibrate and evaluate."""

import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..export.commands import Out, needs_extra, stage_progress
from ..runtime.cli import BundleArgument, JsonOption, check_output_file, check_picture_path
from ..runtime.errors import RedipruneError

_KEEPS = "1,0.5,0.25,0.15,0.1,0.05"
_RULES = "rediprune,diversity,relevance,random,uniform,pool2x2"


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "calibrate",
        epilog="""Examples:\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data photos/\n
    rediprune calibrate engines/llava -o engines/llava-mixed --recipe vision=int8,language=int8 --skip "*.down_proj"\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data questions.jsonl --samples 128 --ranges percentile""",
    )(needs_extra(calibrate))
    app.command(
        "evaluate",
        epilog="""Examples:\n
    rediprune evaluate engines/checkpoint-fp32 --plot accuracy.png\n
    rediprune evaluate engines/llava --data questions.jsonl --keep 1,0.15 --rules rediprune,random --out scores.jsonl""",
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
    force: Annotated[bool, typer.Option("--force", help="Redo finished stages too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a quantised bundle of one in fp32 or fp16, which stays as it is. A finished stage is not redone."""
    from .calibrate import calibrate as run

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
            force=force,
            progress=report,
        )
    record = made.manifest.calibration
    assert record is not None
    if as_json:
        print(json.dumps({"bundle": str(out)} | record.model_dump()))
        return
    console = Console()
    if record.data.get("samples") == 1:
        console.print("[yellow]one sample says little of what the model will see:[/yellow] give more with --data")
    table = Table(
        "stage", "form", "cosine", "relative error", "layers left", "size", title="beside the source, held out"
    )
    for stage, form in record.recipe.items():
        near = record.fidelity[stage]
        numbers = ["not run here", ""] if near is None else [f"{near.cosine:.5f}", f"{near.relative_error:.2%}"]
        size = sum(made.path(file).stat().st_size for file in made.manifest.stages[stage].files)
        table.add_row(stage, form, *numbers, str(len(record.skipped.get(stage, []))), f"{size / 1e6:.1f} MB")
    console.print(table)
    console.print(f"[bold]{out}[/bold]: {record.source} as {made.manifest.precision}", highlight=False, soft_wrap=True)
    for says in dict.fromkeys(limit.says for limit in record.limits):
        console.print(says, highlight=False, soft_wrap=True)


def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        Path | None, typer.Option(help="JSONL of {image or video, question, answer, kind}; default: the built-in task.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, comma separated.")] = _KEEPS,
    rules: Annotated[str, typer.Option(help="Selection rules, comma separated.")] = _RULES,
    backend: Annotated[str, typer.Option(help="What runs the stages.")] = "ort",
    images: Annotated[int, typer.Option(min=0, help="Pictures of the built-in task.")] = 100,
    clips: Annotated[int, typer.Option(min=0, help="Clips of the built-in task.")] = 25,
    split: Annotated[str, typer.Option(help="Split of the built-in task: test or unseen.")] = "test",
    train: Annotated[Path | None, typer.Option(help="Refuse questions that are in this JSONL too.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of a video.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the random rule.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep finished scores here; a rerun goes on from them.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against tokens and time here (PNG).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy per kind of question, keep ratio and selection rule."""
    from .evaluate import check_disjoint, read_questions
    from .evaluate import evaluate as run

    try:
        keeps = [float(ratio) for ratio in keep.split(",")]
    except ValueError as error:
        raise RedipruneError(f"--keep takes ratios separated by commas, not '{keep}'") from error
    if not all(0 < ratio <= 1 for ratio in keeps):
        raise RedipruneError(f"--keep takes ratios in (0, 1], not '{keep}'")
    if plot is not None and find_spec("matplotlib") is None:
        raise RedipruneError("--plot needs matplotlib; install it with: pip install 'rediprune[evaluate]'")
    if plot is not None:
        check_picture_path(plot, "--plot")
    if out is not None:
        check_output_file(out, "--out")
    if split not in ("test", "unseen"):
        raise RedipruneError(f"--split is test or unseen, not '{split}'")
    with TemporaryDirectory() as made:
        if data is None:
            from .dataset import write_set

            data = write_set(Path(made), split, images=images, clips=clips)
        questions = read_questions(data)
        if train is not None:
            check_disjoint(questions, read_questions(train))
        with Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar:
            task = bar.add_task("")

            def report(label: str, at: int, total: int) -> None:
                bar.update(task, description=label, completed=at, total=total)

            scores = run(bundle, questions, keeps, rules.split(","), backend, out, frames, seed, progress=report)
    if plot is not None:
        from .plot import plot_scores

        plot_scores(scores, plot, f"{bundle.name}, {len(questions)} questions")
    if as_json:
        print(json.dumps([score.document() for score in scores]))
        return
    _print(Console(), scores)


def _print(console: Console, scores: list[Any]) -> None:
    kinds = sorted({kind for score in scores for kind in score.asked})
    table = Table("rule", "keep", "tokens", "accuracy", "95 %", *kinds, "first token", "prefill")
    for score in scores:
        low, high = score.interval()
        parts = (f"{score.right.get(kind, 0) / score.asked[kind]:.0%}" if kind in score.asked else "" for kind in kinds)
        table.add_row(
            score.rule,
            f"{score.keep:g}",
            f"{score.visual_tokens:.0f} of {score.all_tokens:.0f}",
            f"{score.accuracy:.1%}",
            f"{low:.1%} – {high:.1%}",
            *parts,
            f"{score.first_token * 1e3:.1f} ms",
            f"{score.prefill_macs / 1e9:.2f} GMAC",
        )
    console.print(table)
