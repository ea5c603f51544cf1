"""`rediprune calibrate`: make a quantised bundle of one in fp32 or fp16."""

import json
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from ...runtime.bundle import CalibrationSpec
from ...runtime.cli.arguments import (
    BundleArgument,
    JsonOption,
    needs_extra,
)
from ...runtime.cli.progress import one_bar, stage_progress
from ...runtime.cli.sensitivity_table import sensitivity_table
from ...runtime.errors import RedipruneError
from ..settings import DEFAULT_SMOOTHING, CalibrationSettings
from .calibrate_options import Backend, Budget, Force, KeepAuto, MostKept, OutOrNone, Questions, Skip
from .quantize_options import (
    AlphaOption,
    DataOption,
    GptqOption,
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
        "calibrate",
        epilog="""Examples:\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data photos/\n
    rediprune calibrate engines/llava -o engines/llava-mixed --recipe vision=int8,language=int8 --skip "*.down_proj"\n
    rediprune calibrate engines/llava -o engines/llava-int8 --data questions.jsonl --samples 128 --ranges percentile\n
    rediprune calibrate engines/llava -o engines/llava-int8 --budget error=2%    (each stage's outputs)\n
    rediprune calibrate engines/llava -o engines/llava-int4 --recipe int4 --data questions.jsonl --budget accuracy=1\n
    rediprune calibrate engines/llava --keep-auto accuracy=1    (then: rediprune run engines/llava --keep auto)""",
    )(needs_extra(calibrate))


def calibrate(
    bundle: BundleArgument,
    out: OutOrNone = None,
    recipe: RecipeOption = CalibrationSettings.recipe,
    data: DataOption = CalibrationSettings.data,
    samples: SamplesOption = CalibrationSettings.samples,
    seed: SeedOption = CalibrationSettings.seed,
    ranges: RangesOption = CalibrationSettings.ranges,
    smoothing: SmoothingOption = DEFAULT_SMOOTHING,
    alpha: AlphaOption = None,
    smooth: SmoothOption = True,
    gptq: GptqOption = CalibrationSettings.gptq,
    skip: Skip = None,
    backend: Backend = None,
    budget: Budget = None,
    questions: Questions = CalibrationSettings.questions,
    keep_auto: KeepAuto = None,
    most: MostKept = 0.5,
    force: Force = False,
    as_json: JsonOption = False,
) -> None:
    """Make a quantised bundle of one in fp32 or fp16, the baseline, which stays as it is; or find a threshold for keep auto.

    Activations are observed once and kept beside the bundle; stages that an interrupted run finished are taken over.
    """
    if keep_auto is not None:
        _keep_auto(bundle, out, KeepAutoAsked(keep_auto, most, data, questions, seed, backend), as_json)
        return
    if out is None:
        raise RedipruneError("give -o the folder of the bundle to make")
    from ..budget import parse_budget
    from ..calibrate import calibrate as run

    settings = CalibrationSettings(
        recipe=recipe,
        data=data,
        samples=samples,
        seed=seed,
        ranges=ranges,
        smoothing=smoothing_of(smoothing, smooth, alpha, DEFAULT_SMOOTHING),
        exclude_layers=tuple(skip or ()),
        budget=None if budget is None else parse_budget(budget),
        questions=questions,
        gptq=gptq,
    )
    with stage_progress(as_json) as report:
        made = run(bundle, out, settings, backend=backend, force=force, progress=report)
    record = made.manifest.calibration
    assert record is not None
    if as_json:
        print(json.dumps({"bundle": str(out)} | record.model_dump()))
        return
    console = Console()
    _warn_of_few_samples(console, record)
    table = Table(
        "stage",
        "scheme",
        "cosine",
        "relative error",
        "layers left",
        "size",
        title="beside the baseline, on held-out samples",
    )
    for stage, scheme in record.recipe.items():
        near = record.fidelity[stage]
        numbers = ["not run here", ""] if near is None else [f"{near.cosine:.5f}", f"{near.relative_error:.2%}"]
        size = sum(made.path(file).stat().st_size for file in made.manifest.stages[stage].files)
        table.add_row(stage, scheme, *numbers, str(len(record.skipped.get(stage, []))), f"{size / 1e6:.1f} MB")
    console.print(table)
    if record.sensitivity:
        console.print(sensitivity_table(record.sensitivity, record))
    if budget is not None:
        console.print(_says_budget(record), highlight=False, soft_wrap=True)
    console.print(f"[bold]{out}[/bold]: {record.source} as {made.manifest.precision}", highlight=False, soft_wrap=True)
    for says in dict.fromkeys(limit.says for limit in record.limits):
        console.print(says, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class KeepAutoAsked:
    """What was asked of --keep-auto, as on the command line."""

    budget: str
    most: float
    data: Path | None
    questions: int
    seed: int
    backend: str | None


def _keep_auto(bundle: Path, out: Path | None, asked: KeepAutoAsked, as_json: bool) -> None:
    """Find where the choice of tokens may end, and print what that costs."""
    from ..keep_auto import KeepAutoSettings, calibrate_keep_auto, parse_keep_auto

    if out is not None:
        raise RedipruneError("--keep-auto records its threshold in BUNDLE itself; leave -o out")
    if not asked.most:
        raise RedipruneError("--most must be above 0: at least one token is kept")
    settings = KeepAutoSettings(
        parse_keep_auto(asked.budget), asked.most, asked.data, asked.questions, asked.seed, asked.backend or "auto"
    )
    with one_bar(as_json) as report:
        found = calibrate_keep_auto(bundle, settings, report)
    if as_json:
        print(found.model_dump_json())
        return
    title = f"{found.questions} questions ({found.data}), at most {found.most:.0%} of the tokens"
    table = Table("scope", "threshold", "tokens", "correct", "with all tokens", title=title)
    for scope, threshold in found.thresholds.items():
        correct = f"{found.accuracy[scope]:.1f} %", f"{found.baseline[scope]:.1f} %"
        table.add_row(scope, f"{threshold:.3f}", f"{found.tokens[scope]:.1%}", *correct)
    Console().print(table)


def _warn_of_few_samples(console: Console, record: CalibrationSpec) -> None:
    """Say so where static ranges were taken from too few samples to hold for others."""
    from ..data import FEW
    from ..quantize.schemes import SCHEMES

    samples = record.data.get("samples", FEW)
    if int(samples) < FEW and any(SCHEMES[scheme].activations == "needed" for scheme in record.recipe.values()):
        console.print(
            f"[yellow]{samples} samples say little of what the model will see:[/yellow] give {FEW} or more "
            "with --data and --samples, or a scheme that needs none"
        )


def _says_budget(record: CalibrationSpec) -> str:
    """What a budget came to, in a sentence."""
    from ..budget import ACCURACY

    if record.budget.startswith(ACCURACY):
        shown = [f"{abs(n):.2f} points {'gained' if n < 0 else 'lost'} at keep {k}" for k, n in record.measured.items()]
    else:
        shown = [f"{error:.2%} of {stage}'s outputs lost" for stage, error in record.measured.items()]
    left = sum(not one.quantised for one in record.sensitivity)
    groups = f"{left} of {len(record.sensitivity)} layer groups stay in {record.source_precision}"
    return f"budget {record.budget}: {groups if left else 'every layer fits'}; {', '.join(shown)}"
