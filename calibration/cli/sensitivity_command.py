"""`rediprune sensitivity`: what quantising each part of a bundle alone does."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...runtime.cli.arguments import (
    BundleArgument,
    JsonOption,
    check_outputs,
    needs_extra,
)
from ...runtime.cli.progress import stage_progress
from ...runtime.cli.sensitivity_table import sensitivity_table


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "sensitivity",
        epilog="""Examples:\n
    rediprune sensitivity engines/demo-fp32\n
    rediprune sensitivity engines/llava --recipe language=int4 --data questions.jsonl --json""",
    )(needs_extra(sensitivity))


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
    from ..budget import ERROR, by_worth
    from ..calibrate import sensitivity as run

    check_outputs(None, page)
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
        from ..evaluation.evaluation_page import write_sensitivity_page

        write_sensitivity_page(found, page, bundle, recipe, shlex.join(["rediprune", *sys.argv[1:]]))
    if as_json:
        print(json.dumps([one.model_dump() for one in found]))
        return
    for stage in stages:
        Console().print(sensitivity_table([one for one in found if one.stage == stage]))
