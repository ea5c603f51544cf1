"""`rediprune report`: calibrated bundles beside their source."""

import json
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...calibration.cli.question_sets import question_sets
from ...runtime.cli.arguments import (
    JsonOption,
    check_outputs,
    keep_ratios,
    needs_extra,
)
from ...runtime.cli.progress import one_bar
from ...runtime.errors import RedipruneError
from .report_options import (
    Backend,
    Bundle,
    Clips,
    Data,
    Frames,
    Images,
    Keep,
    Kept,
    Limit,
    Out,
    Page,
    Runs,
    Samples,
    Seed,
    Threads,
    Tolerance,
)


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "report",
        epilog="""Examples:\n
    rediprune report engines/demo-fp32\n
    rediprune report engines/demo-fp32 engines/demo-int8 engines/demo-int4 --page calibration.md\n
    rediprune report engines/llava-int8 --data questions.jsonl --runs 0 --json""",
    )(needs_extra(report))


def report(
    bundle: Bundle,
    data: Data = None,
    images: Images = 100,
    clips: Clips = 40,
    keep: Keep = "1,0.15",
    kept: Kept = "0.5,0.25,0.15,0.1",
    samples: Samples = 32,
    backend: Backend = "ort",
    frames: Frames = 8,
    threads: Threads = 0,
    seed: Seed = 0,
    runs: Runs = 3,
    limit: Limit = 600,
    tolerance: Tolerance = 1.0,
    out: Out = None,
    page: Page = None,
    as_json: JsonOption = False,
) -> None:
    """Compare calibrated bundles with their source in size, times, errors, kept sets and answers, and recommend one.

    The errors of the stages are recorded in the calibrated bundles, and `rediprune validate` holds them to these.
    """
    from ...calibration.evaluation.calibrated_bundles import find_bundles
    from ...calibration.evaluation.evaluate import EvaluationOptions
    from ...calibration.evaluation.report import ReportOptions
    from ...calibration.evaluation.report import report as run
    from ...calibration.evaluation.report_page import figures, write_page
    from ..bench.bench import bench
    from ..bench.bench_settings import BenchSettings

    keeps, ratios = keep_ratios(keep, "--keep"), keep_ratios(kept, "--kept")
    if page is not None and find_spec("matplotlib") is None:
        raise RedipruneError("--page needs matplotlib; install it with: pip install 'rediprune[plot]'")
    check_outputs(out, page)
    if data is None and not images and not clips:
        raise RedipruneError("there is nothing to ask; give --images or --clips more than 0")
    bundles = find_bundles(bundle)
    evaluation = EvaluationOptions(backend, frames, threads=threads)
    options = ReportOptions(keeps, ratios, samples, seed, tolerance, evaluation)

    def time_bundles(folders: Sequence[Path]) -> dict[str, Any]:
        settings = BenchSettings(keeps=keeps, backends=(backend,), runs=runs, threads=threads, limit=limit)
        return bench(folders, settings)

    with TemporaryDirectory() as made, one_bar(as_json) as say:
        document = run(
            bundles,
            question_sets(data, None, ["test"], images, clips, Path(made), say),
            options,
            time_bundles=time_bundles if runs else None,
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
