"""`rediprune bench`: bundles beside what a user would take instead."""

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ...runtime.cli.arguments import (
    check_output_file,
    keep_ratios,
    needs_extra,
)
from ...runtime.errors import RedipruneError

if TYPE_CHECKING:
    from ..bench.bench_settings import BenchSettings


Accounting = Annotated[
    str | None,
    typer.Option(
        help="paper: in place of the comparison, operations by the published formula and counted exactly, and times as the "
        "authors' release takes them, of the first bundle on the first backend."
    ),
]


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "bench",
        epilog="""Examples:\n
    rediprune bench engines/real --image photo.jpg\n
    rediprune bench engines/real engines/real-int8 --backends ort,openvino --peers eager,compiled --page bench.md\n
    rediprune bench engines/real --peers openvino-genai,llama.cpp --peers-python .venv-peers/bin/python""",
    )(needs_extra(bench))


def bench(
    bundle: Annotated[
        list[Path], typer.Argument(help="Bundles of one checkpoint, for instance in several precisions.")
    ],
    image: Annotated[Path | None, typer.Option(help="Ask about this image. Default: a made one.")] = None,
    video: Annotated[Path | None, typer.Option(help="Ask about this video instead of an image.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="The number of frames to sample from the video.")] = 8,
    runs: Annotated[
        int, typer.Option(min=1, help="The number of turns of each contender. Each turn is a fresh process.")
    ] = 3,
    threads: Annotated[
        int, typer.Option(min=0, help="The number of threads of each contender; 0 is one for each core.")
    ] = 0,
    keeps: Annotated[
        str, typer.Option(help="The keep ratios to measure, each in (0, 1], comma separated.")
    ] = "1,0.25,0.15,0.1",
    backends: Annotated[str, typer.Option(help="The backends to run every bundle on, comma separated.")] = "auto",
    peers: Annotated[
        str,
        typer.Option(
            help="The other tools to measure, comma separated: eager, eager-bf16, compiled (torch.compile), released, "
            "exported (transformers' ONNX); with --peers-python also openvino-genai (-int8, -int4) and llama.cpp (-q8_0, "
            "-q4_0). `none` measures the bundles alone."
        ),
    ] = "eager,eager-bf16,released",
    peers_python: Annotated[
        str | None,
        typer.Option(
            help="The Python interpreter that has openvino-genai and llama.cpp (`make bench-peers`). Default: this one."
        ),
    ] = None,
    limit: Annotated[
        float, typer.Option(help="The seconds that a turn may take. A contender that takes longer is left out.")
    ] = 600,
    grow: Annotated[
        bool, typer.Option("--grow", help="Also measure how time grows with frames, kept tokens and prompt.")
    ] = False,
    accounting: Accounting = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page in Markdown to this file, with its plots beside it.")
    ] = None,
) -> None:
    """Time bundles beside other tools with the same checkpoint. The last line printed is one JSON document."""
    from ..bench.bench import bench as run
    from ..bench.bench_settings import BenchSettings
    from ..bench.bench_table import print_table

    ratios = keep_ratios(keeps, "--keeps")
    if page is not None and find_spec("matplotlib") is None:
        raise RedipruneError("--page needs matplotlib; install it with: pip install 'rediprune[plot]'")
    for path, option in ((out, "--out"), (page, "--page")):
        if path is not None:
            check_output_file(path, option)
    settings = BenchSettings(
        image=image,
        video=video,
        frames=frames,
        keeps=ratios,
        backends=backends.split(","),
        peers=[] if peers == "none" else peers.split(","),
        runs=runs,
        threads=threads,
        limit=limit,
        grow=grow,
        peers_python=peers_python or sys.executable,
    )
    if accounting is not None:
        _account(bundle[0], accounting, settings, out, page)
        return
    document = run(bundle, settings)
    print_table(Console(), document)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        from ..bench.bench_page import write_page

        write_page(document, page, shlex.join(["rediprune", *sys.argv[1:]]))
    print(json.dumps(document))


def _account(folder: Path, accounting: str, settings: "BenchSettings", out: Path | None, page: Path | None) -> None:
    """Count and time a bundle as the paper does; the last line printed is one JSON document."""
    from ...runtime.bundle import Bundle
    from ...runtime.machine import processor_name
    from ..bench.bench import QUESTION
    from ..bench.paper_accounting import PAPER, Asked, account, accounting_page
    from ..validate.sample_media import sample_picture

    if accounting != PAPER:
        raise RedipruneError(f"--accounting takes {PAPER}, not '{accounting}'")
    with TemporaryDirectory() as scratch:
        picture = settings.image
        if picture is None and settings.video is None:
            picture = Path(scratch) / "sample.png"
            sample_picture().save(picture)
        asked = Asked(
            QUESTION,
            [str(picture)] if settings.video is None else [],
            [] if settings.video is None else [str(settings.video)],
            settings.frames,
            settings.keeps,
            runs=settings.runs,
            backend=settings.backends[0],
            threads=settings.threads,
        )
        document = account(Bundle.open(folder), asked)
    text = accounting_page(
        document, shlex.join(["rediprune", *sys.argv[1:]]), f"{processor_name()}, {settings.cores} threads"
    )
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        page.write_text(text, encoding="utf-8")
    print(text, file=sys.stderr)
    print(json.dumps(document))
