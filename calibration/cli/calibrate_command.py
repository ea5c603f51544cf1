"""`rediprune calibrate`: a quantised bundle of one in fp32 or fp16."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...runtime.bundle import CalibrationSpec
from ...runtime.cli.arguments import (
    BundleArgument,
    JsonOption,
    Out,
    needs_extra,
)
from ...runtime.cli.progress import stage_progress
from ...runtime.cli.sensitivity_table import sensitivity_table


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "calibrate",
        epilog="""Examples:\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data photos/\n
    rediprune calibrate engines/llava -o engines/llava-mixed --recipe vision=int8,language=int8 --skip "*.down_proj"\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data questions.jsonl --samples 128 --ranges percentile\n
    rediprune calibrate engines/llava -o engines/llava-int8 --budget error=2%    (each stage's outputs)\n
    rediprune calibrate engines/llava -o engines/llava-int4 --recipe int4 --data questions.jsonl --budget accuracy=1""",
    )(needs_extra(calibrate))


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
    from ..calibrate import calibrate as run
    from ..data import FEW
    from ..quantize.recipes import FORMS

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
    from ..budget import ACCURACY

    if record.budget.startswith(ACCURACY):
        shown = [f"{abs(n):.2f} points {'gained' if n < 0 else 'lost'} at keep {k}" for k, n in record.measured.items()]
    else:
        shown = [f"{error:.2%} of {stage}'s outputs lost" for stage, error in record.measured.items()]
    left = sum(not one.quantised for one in record.sensitivity)
    of = f"{left} of {len(record.sensitivity)} units stay in {record.source_precision}" if left else "every layer fits"
    return f"budget {record.budget}: {of}; {', '.join(shown)}"
