"""`rediprune build`: engines for a backend."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...runtime.backends.session import runs_on
from ...runtime.cli.arguments import (
    BundleArgument,
    JsonOption,
    needs_extra,
)
from ...runtime.cli.progress import stage_progress
from ...runtime.errors import RedipruneError


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "build",
        epilog="""Examples:\n
    rediprune build engines/llava --backend ort\n
    rediprune build engines/llava --backend auto\n
    rediprune build engines/llava --backend tensorrt-rtx --target sm_89,sm_120 --profile kept=1:64:576""",
    )(needs_extra(build))


def build(
    bundle: BundleArgument,
    backend: Annotated[
        str,
        typer.Option(
            help="The backend to build for: ort, openvino, tensorrt (for the GPU that is here), tensorrt-rtx (needs none), or auto: what runs the bundle here, and TensorRT (-RTX) for a GPU."
        ),
    ] = "ort",
    target: Annotated[
        list[str] | None,
        typer.Option(help="The GPUs to build for, such as sm_80,sm_89,sm_120; for tensorrt-rtx only. May be repeated."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="The least, usual and greatest size of a dimension that an engine takes, such as kept=1:64:576, or its only size, such as cache=2048. May be repeated."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build engines again that are up to date.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle's stages for a backend, and record in its manifest what they were built with."""
    if backend in ("ort", "openvino"):
        _build_cpu(bundle, backend, bool(target or profile), as_json)
        return
    if backend == "auto":
        _build_for_machine(bundle, bool(target or profile or force), as_json)
        return
    if backend not in ("tensorrt", "tensorrt-rtx"):
        raise RedipruneError(
            f"backend '{backend}' is not one that is built; choose auto, ort, openvino, tensorrt or tensorrt-rtx"
        )
    from ..build.tensorrt_engines import build_tensorrt

    targets = [name.strip() for text in target or () for name in text.split(",")]
    with stage_progress(as_json) as report:
        made = build_tensorrt(bundle, backend, targets=targets, profile=profile or (), force=force, progress=report)
    if as_json:
        print(json.dumps(made.document()))
        return
    console, engines = Console(), made.engines
    table = Table("stage", "precision", "seconds", "peak memory", "size")
    for name, stage in made.stages.items():
        took = ["up to date", ""] if stage.reused else [f"{stage.seconds:.1f}", f"{stage.peak_memory / 1e9:.2f} GB"]
        table.add_row(name, engines.precision[name], *took, f"{stage.size / 1e6:.1f} MB")
    console.print(table)
    console.print(
        f"{bundle}: {engines.library} {engines.version} for {', '.join(engines.compute_capability)}",
        highlight=False,
        soft_wrap=True,
    )


def _build_for_machine(bundle: Path, with_options: bool, as_json: bool) -> None:
    from ..build.machine_engines import build_for_machine

    if with_options:
        raise RedipruneError("--target, --profile and --force are for one backend; name it with --backend")
    with stage_progress(as_json) as report:
        made = build_for_machine(
            bundle, lambda backend: lambda stage, what, fraction: report(f"{backend} {stage}", what, fraction)
        )
    if as_json:
        print(json.dumps([asdict(each) for each in made]))
        return
    table = Table("backend", "built", "runs here", title=str(bundle))
    for each in made:
        table.add_row(each.backend, each.outcome, each.runs)
    Console().print(table)


def _build_cpu(bundle: Path, backend: str, with_sizes: bool, as_json: bool) -> None:
    from ..build.cpu_engines import build_cpu

    if with_sizes:
        raise RedipruneError(f"--target and --profile are for tensorrt and tensorrt-rtx; {backend} takes every size")
    with stage_progress(as_json) as report:
        engine = build_cpu(bundle, backend, report)
    if as_json:
        print(engine.model_dump_json())
        return
    left = "" if runs_on(backend, "select") == backend else f"; select runs on {runs_on(backend, 'select')}"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{bundle}: {len(engine.stages)} stages run on {engine.library} {engine.version}{left}")
