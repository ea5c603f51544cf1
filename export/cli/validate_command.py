"""`rediprune validate`: a bundle beside the checkpoint in eager PyTorch."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ...runtime.backends.session import runs_on
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
    rediprune validate engines/llava --eager vision    (does the answer drift without the vision engine?)""",
    )(needs_extra(validate))


def validate(
    bundle: BundleArgument,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "ort",
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; repeat.")] = None,
    eager: Annotated[list[str] | None, typer.Option(help="Run this stage eagerly end to end; repeat.")] = None,
    image: Annotated[Path | None, typer.Option(help="Ask about this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Ask about this video.")] = None,
    threads: Annotated[int, typer.Option(help="Threads per stage; 0 leaves it to the backend.")] = 0,
    refresh: Annotated[bool, typer.Option("--refresh", help="Compute the eager reference anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with the checkpoint in eager PyTorch. Exit code 1 if it differs."""
    from ..validate.validate import validate as run

    console = Console()
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
        )
    if as_json:
        print(json.dumps(report.document()))
    else:
        _print_report(console, report)
    raise typer.Exit(0 if report.passed else 1)


def _print_report(console: Console, report: Any) -> None:
    table = Table("stage", "input", "max abs", "max rel", "1 − cos", "rel error", "eager noise", "", title="stages")
    cases: dict[tuple[str, str], list[Any]] = {}
    for row in report.stages:
        cases.setdefault((row.stage, row.case), []).append(row)
    for (stage, case), rows in cases.items():
        worst = max(rows, key=lambda row: (not row.passed, row.max_abs))
        numbers = (worst.max_abs, worst.max_rel, 1 - worst.cosine, worst.relative_error, worst.noise)
        cells = ["0" if abs(number) < 1e-15 else f"{number:.0e}" for number in numbers]
        if worst.note:
            cells = [worst.note, "", "", "", ""]
        elif stage == "select":
            cells = ["equal", "", "", "", ""]
        table.add_row(stage, case, *cells, _mark(worst.passed))
    if report.stages:
        console.print(table)
    table = Table("request", "tokens", "ids", "kept sets", "", title="end to end")
    for row in report.stories:
        ids = "equal"
        if not row.equal:
            ids = "one ends earlier"
            if row.first_divergence is not None:
                ids = f"differ from token {row.first_divergence}, logit gap {row.logit_gap:.2g}"
        kept = "equal" if row.jaccard == 1 else f"Jaccard {row.jaccard:.2f}"
        table.add_row(row.case, str(row.tokens), ids, kept, _mark(row.passed))
    if report.stories:
        console.print(table)
    eager = f" with {', '.join(report.eager)} in eager PyTorch" if report.eager else ""
    left = {row.stage: runs_on(report.backend, row.stage) for row in report.stages}
    others = "".join(f", {stage} on {backend}" for stage, backend in left.items() if backend != report.backend)
    what = f"{report.bundle} on {report.backend}{others} ({report.precision}){eager}"
    equal = sum(row.equal for row in report.stories)
    if report.passed and not report.stories:
        stages = ", ".join(dict.fromkeys(row.stage for row in report.stages))
        console.print(f"[green]equal to eager PyTorch[/green] in {stages}: {what}", highlight=False)
    elif report.passed and report.precision != "fp32":
        console.print(
            f"[green]every stage within the error expected of {report.precision}[/green], {equal} of {len(report.stories)} "
            f"answers identical to eager PyTorch in fp32: {what}",
            highlight=False,
        )
    elif report.passed:
        console.print(f"[green]equal to eager PyTorch[/green]: {what}", highlight=False)
    elif report.failing_stages:
        console.print(f"[red]differs[/red] in {', '.join(report.failing_stages)}: {what}", highlight=False)
    else:
        console.print(f"[red]answers differ[/red] though each stage agrees: {what}", highlight=False)


def _mark(passed: bool) -> str:
    return "[green]✓[/green]" if passed else "[red]✗[/red]"
