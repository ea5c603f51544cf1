"""`rediprune validate`: a bundle beside the checkpoint in eager PyTorch."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...runtime.backends.session import runs_on
from ...runtime.bundle import Bundle
from ...runtime.cli.arguments import (
    BACKEND_HELP,
    BundleArgument,
    JsonOption,
    needs_extra,
)
from ...runtime.cli.progress import waiting


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "validate",
        epilog="""Examples:\n
    rediprune validate engines/llava\n
    rediprune validate engines/llava --stage vision --stage select\n
    rediprune validate engines/llava --eager vision    (does the answer drift without the vision engine?)\n
    rediprune validate engines/llava --stage vision --save-inputs vision-io    (and the `polygraphy run` to go on with)""",
    )(needs_extra(validate))


def validate(
    bundle: BundleArgument,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "auto",
    stage: Annotated[
        list[str] | None, typer.Option(help="Compare only this stage, and no whole answers. May be repeated.")
    ] = None,
    eager: Annotated[
        list[str] | None, typer.Option(help="Run this stage in eager PyTorch end to end. May be repeated.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Ask about this image instead of a made one.")] = None,
    video: Annotated[Path | None, typer.Option(help="Ask about this video instead of a made one.")] = None,
    threads: Annotated[int, typer.Option(help="The number of threads of each stage; 0 leaves it to the backend.")] = 0,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Run eager PyTorch again, instead of reading what it gave before.")
    ] = False,
    save_inputs: Annotated[
        Path | None,
        typer.Option(
            help="Write each stage's inputs and eager PyTorch's outputs to this folder, for `polygraphy run`.",
            file_okay=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with the checkpoint in eager PyTorch. The exit code is 1 if it differs."""
    from ..validate.polygraphy_files import polygraphy_command
    from ..validate.validate import validate as run

    with waiting("comparing with eager PyTorch", as_json):
        report = run(
            bundle,
            backend,
            stage or (),
            eager or (),
            image,
            video,
            threads=threads,
            refresh=refresh,
            save_inputs=save_inputs,
        )
    if as_json:
        print(json.dumps(report.document()))
    else:
        _print_report(Console(), report)
        if save_inputs is not None:
            opened = Bundle.open(bundle, verify=False)
            for name in report.failing_stages or dict.fromkeys(row.stage for row in report.stages):
                rows = [row for row in report.stages if row.stage == name]
                print(polygraphy_command(opened, report.backends[name], rows, save_inputs))
    raise typer.Exit(0 if report.passed else 1)


def _print_report(console: Console, report: Any) -> None:
    if report.stages:
        console.print(_stage_table(report.stages))
    if report.end_to_end:
        console.print(_end_to_end_table(report.end_to_end))
    console.print(_verdict(report), highlight=False)


def _table(*header: str, title: str) -> Table:
    """A table that fits 80 columns."""
    return Table(*header, title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)


def _stage_table(rows: list[Any]) -> Table:
    """One line for each input of a stage: its worst output."""
    table = _table("stage", "input", "max abs", "max rel", "1 − cos", "rel error", "noise", "", title="stages")
    cases: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        cases.setdefault((row.stage, row.case), []).append(row)
    for (stage, case), outputs in cases.items():
        worst = max(outputs, key=lambda row: (not row.passed, row.max_abs or 0.0))
        if worst.note:
            cells = [worst.note, "", "", "", ""]
        elif stage.startswith("select"):
            cells = ["equal", "", "", "", ""]
        else:
            numbers = (worst.max_abs, worst.max_rel, 1 - worst.cosine, worst.relative_error, worst.noise)
            cells = ["0" if abs(number) < 1e-15 else f"{number:.0e}" for number in numbers]
        table.add_row(stage, case, *cells, _mark(worst.passed))
    return table


def _end_to_end_table(rows: list[Any]) -> Table:
    table = _table("request", "tokens", "ids", "kept sets", "", title="end to end")
    for row in rows:
        ids = "equal" if row.equal else "one ends earlier"
        if row.first_divergence is not None:
            gap = "" if row.logit_gap is None else f", logit gap {row.logit_gap:.2g}"
            tolerated = "" if row.gap_tolerance is None else f" of {row.gap_tolerance:.2g} tolerated"
            ids = f"differ from token {row.first_divergence}{gap}{tolerated}"
        if row.note:
            ids += f": {row.note}"
        kept = "equal" if row.jaccard == 1 else f"Jaccard {row.jaccard:.2f}"
        table.add_row(row.case, str(row.tokens), ids, kept, _mark(row.passed))
    return table


def _verdict(report: Any) -> str:
    eager = f" with {', '.join(report.eager)} in eager PyTorch" if report.eager else ""
    left = {row.stage: runs_on(report.backend, row.stage) for row in report.stages}
    others = "".join(f", {stage} on {backend}" for stage, backend in left.items() if backend != report.backend)
    what = f"{report.bundle} on {report.backend}{others} ({report.precision}){eager}"
    if report.failing_stages:
        return f"[red]differs[/red] in {', '.join(report.failing_stages)}: {what}"
    if not report.passed:
        return f"[red]answers differ[/red] though each stage agrees: {what}"
    if not report.end_to_end:
        return f"[green]equal to eager PyTorch[/green] in {', '.join(left)}: {what}"
    if report.precision == "fp32":
        return f"[green]equal to eager PyTorch[/green]: {what}"
    equal, asked = sum(row.equal for row in report.end_to_end), len(report.end_to_end)
    rest = "" if equal == asked else ", the others part from it where it was nearly undecided"
    return (
        f"[green]every stage within the error expected of {report.precision}[/green], {equal} of {asked} answers "
        f"identical to eager PyTorch in fp32{rest}: {what}"
    )


def _mark(passed: bool) -> str:
    return "[green]✓[/green]" if passed else "[red]✗[/red]"
