"""`rediprune sensitivity`: measure what quantising each layer group of a bundle alone does."""

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
from ..settings import DEFAULT_SMOOTHING, CalibrationSettings
from .quantize_options import (
    AlphaOption,
    DataOption,
    RangesOption,
    RecipeOption,
    SamplesOption,
    SeedOption,
    SmoothingOption,
    SmoothOption,
    smoothing_of,
)


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
    recipe: RecipeOption = CalibrationSettings.recipe,
    data: DataOption = CalibrationSettings.data,
    samples: SamplesOption = CalibrationSettings.samples,
    seed: SeedOption = CalibrationSettings.seed,
    ranges: RangesOption = CalibrationSettings.ranges,
    smoothing: SmoothingOption = DEFAULT_SMOOTHING,
    alpha: AlphaOption = None,
    smooth: SmoothOption = True,
    force: Annotated[bool, typer.Option("--force", help="Measure again what an earlier run has measured.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the tables to this file (.md).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what quantising each layer group of a bundle alone does to features, kept sets and answers.

    A layer group is the layers that read one value. First come those that bring most for their size when they are left as
    they are: `rediprune calibrate --budget` excludes them in this order.
    """
    from ..budget import ERROR, by_benefit_per_weight
    from ..sensitivity import sensitivity as run

    check_outputs(None, page)
    settings = CalibrationSettings(
        recipe=recipe,
        data=data,
        samples=samples,
        seed=seed,
        ranges=ranges,
        smoothing=smoothing_of(smoothing, smooth, alpha, DEFAULT_SMOOTHING),
    )
    with stage_progress(as_json) as report:
        found = run(bundle, settings, force=force, progress=report)
    stages = list(dict.fromkeys(one.stage for one in found))
    found = [
        one for stage in stages for one in by_benefit_per_weight([one for one in found if one.stage == stage], ERROR)
    ]
    if page is not None:
        from ..evaluation.evaluation_page import write_sensitivity_page

        write_sensitivity_page(found, page, bundle, recipe, shlex.join(["rediprune", *sys.argv[1:]]))
    if as_json:
        print(json.dumps([one.model_dump() for one in found]))
        return
    for stage in stages:
        Console().print(sensitivity_table([one for one in found if one.stage == stage]))
