"""`rediprune bench`: bundles beside what a user would take instead."""

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...runtime.cli.arguments import (
    check_output_file,
    keep_ratios,
    needs_extra,
)
from ...runtime.errors import RedipruneError


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
    bundle: Annotated[list[Path], typer.Argument(help="Bundles of one checkpoint, e.g. in several precisions.")],
    image: Annotated[Path | None, typer.Option(help="Ask about this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Ask about this video instead.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the video.")] = 8,
    runs: Annotated[int, typer.Option(min=1, help="Turns of every contender, each a fresh process.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="Threads of every contender; 0 is all cores.")] = 0,
    keeps: Annotated[str, typer.Option(help="Keep ratios, comma separated.")] = "1,0.25,0.15,0.1",
    backends: Annotated[str, typer.Option(help="Backends of every bundle, comma separated.")] = "ort",
    peers: Annotated[
        str,
        typer.Option(
            help="Comma separated: eager, eager-bf16, compiled (torch.compile), released, exported (transformers' ONNX); "
            "with --peers-python openvino-genai (-int8, -int4) and llama.cpp (-q8_0, -q4_0); or none."
        ),
    ] = "eager,eager-bf16,released",
    peers_python: Annotated[
        str | None,
        typer.Option(help="Python that has openvino-genai and llama.cpp (make bench-peers); otherwise this one."),
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds a turn may take; a peer that takes longer is left out.")] = 600,
    grow: Annotated[bool, typer.Option("--grow", help="Measure growth with frames, keep and prompt too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page in Markdown with plots here.")] = None,
) -> None:
    """Time bundles beside what a user would take instead. The last line is one JSON document."""
    from ..bench.bench import bench as run
    from ..bench.bench_table import print_table

    ratios = keep_ratios(keeps, "--keeps")
    if page is not None and find_spec("matplotlib") is None:
        raise RedipruneError("--page needs matplotlib; install it with: pip install 'rediprune[evaluate]'")
    for path, option in ((out, "--out"), (page, "--page")):
        if path is not None:
            check_output_file(path, option)
    document = run(
        bundle,
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
    print_table(Console(), document)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        from ..bench.bench_page import write_page

        write_page(document, page, shlex.join(["rediprune", *sys.argv[1:]]))
    print(json.dumps(document))
