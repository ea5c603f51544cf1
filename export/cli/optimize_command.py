"""`rediprune optimize`: the best engine for this machine."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...runtime.cli.arguments import JsonOption, Out, check_outputs, needs_extra
from ...runtime.cli.progress import stage_progress
from ...runtime.cli.sizes import parse_size


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "optimize",
        epilog="""Examples:\n
    rediprune optimize path/to/llava-1.5-7b-hf -o engines/llava-fast\n
    rediprune optimize engines/llava-fp32 -o engines/llava-fast --budget error=2% --target throughput\n
    rediprune optimize engines/llava-fp32 -o engines/llava-small --target size --memory 4GB --data questions.jsonl\n
    rediprune optimize engines/llava-fp32 -o engines/llava-exact --budget exact    (float32, on the fastest backend)""",
    )(needs_extra(optimize))


def optimize(
    source: Annotated[
        str, typer.Argument(help="A checkpoint (folder or hub id), or a bundle in fp32.", metavar="CHECKPOINT|BUNDLE")
    ],
    out: Out,
    budget: Annotated[
        str,
        typer.Option(
            help="How much may be lost: accuracy=POINTS on questions, error=RELATIVE of each stage's outputs, or exact."
        ),
    ] = "accuracy=1",
    target: Annotated[
        str,
        typer.Option(help="What to make least: first-token, throughput (a whole answer of 64 tokens) or size."),
    ] = "first-token",
    memory: Annotated[
        str | None, typer.Option(help="The memory that the loaded weights may take, such as 4GB. Default: no bound.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="The ratio of visual tokens that is timed. Default: the bundle's.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Questions with answers (JSONL) to calibrate and measure with, or for --budget error= a folder of pictures. "
            "Default: the built-in set."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="The number of samples to calibrate with.")] = 16,
    questions: Annotated[
        int, typer.Option(min=1, help="The number of questions that a budget of accuracy is measured on.")
    ] = 60,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each stage; 0 leaves it to the backend.")] = 0,
    revision: Annotated[str | None, typer.Option(help="The revision of a hub id.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write what was tried to this file, in Markdown.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the best bundle for this machine: every stage in every form that fits, timed on every backend at hand.

    Towers and decoder are quantised in several ways, timed in turns, held to the budget and mixed; the whole chain is
    compared with eager PyTorch, and the exit code is 1 if it differs. The plan goes into the manifest, and `--backend
    auto` follows it on this machine.
    """
    from ..optimize.optimize import optimize as run
    from ..optimize.optimize_settings import OptimizeSettings
    from ..optimize.plan_page import chosen_rows, plan_page

    check_outputs(None, page)
    bound = None if memory is None else parse_size(memory, "--memory")
    settings = OptimizeSettings(budget, target, bound, keep, data, samples, questions, threads)
    with stage_progress(as_json) as report:
        made = run(source, out, settings, revision=revision, progress=report)
    if page is not None:
        page.write_text(plan_page(made, shlex.join(["rediprune", *sys.argv[1:]])), encoding="utf-8")
    if as_json:
        print(json.dumps({"bundle": str(out), "notes": made.notes} | made.plan.model_dump(mode="json")))
        raise typer.Exit(0 if made.passed else 1)
    console = Console()
    head, rows = chosen_rows(made.plan)
    table = Table(*head, title=f"{out}, for {made.plan.target}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for name, value in made.plan.outcome.items():
        console.print(f"{name}: {value:.4g}", highlight=False)
    for note in made.notes:
        console.print(f"[yellow]{note}[/yellow]", highlight=False, soft_wrap=True)
    console.print(f"Ask it: rediprune run {out} --image photo.jpg --prompt 'What is this?'", highlight=False)
    raise typer.Exit(0 if made.passed else 1)
