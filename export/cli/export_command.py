"""`rediprune export`: a bundle of a checkpoint."""

import json
from typing import Annotated

import typer
from rich.console import Console

from ...runtime.bundle import WEIGHTS
from ...runtime.cli.arguments import (
    JsonOption,
    Out,
    needs_extra,
)
from ...runtime.cli.progress import stage_progress


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "export",
        epilog="""Examples:\n
    rediprune export path/to/llava-1.5-7b-hf -o engines/llava\n
    rediprune export llava-hf/llava-1.5-7b-hf -o engines/llava --precision fp16\n
    rediprune export path/to/bf16-checkpoint -o engines/cpu --copy    (starts faster on CPUs)""",
    )(needs_extra(export))


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="The checkpoint: a folder with config.json and safetensors, or a hub id such as llava-hf/llava-1.5-7b-hf."
        ),
    ],
    out: Out,
    precision: Annotated[
        str, typer.Option(help="The precision of weights and activations: fp32 or fp16. Selection is always fp32.")
    ] = "fp32",
    revision: Annotated[
        str | None, typer.Option(help="The revision of the hub id: a branch, a tag or a commit.")
    ] = None,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="Write converted weights instead of referring to the checkpoint's own files. The bundle takes more disk, and "
            "a bfloat16 checkpoint needs no conversion at each start on a CPU.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Export stages again that are up to date.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare each graph with PyTorch.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Trace a checkpoint's five stages into a bundle. A stage that is up to date is not exported again."""
    from ..checkpoint.reader import Checkpoint
    from ..exporter import export_bundle

    with stage_progress(as_json) as report:
        bundle = export_bundle(Checkpoint.open(checkpoint, revision), out, precision, force, check, report, copy)
    manifest = bundle.manifest
    linked = {name for name in bundle.expected_files() if name.startswith(f"{WEIGHTS}/")}
    own = sum(bundle.path(file).stat().st_size for file in bundle.expected_files().keys() - linked)
    shared = sum(bundle.path(file).stat().st_size for file in linked)
    uncompared = [] if not check else [name for name, stage in manifest.stages.items() if not stage.compared]
    if as_json:
        document = {"bundle": str(out), "family": manifest.family, "precision": manifest.precision}
        print(json.dumps(document | {"bytes": own, "linked_bytes": shared, "not_compared": uncompared}))
        return
    console = Console()
    if not shared and not copy:
        console.print("the weights were copied: this file system cannot have hard links to the checkpoint's files")
    if uncompared:
        console.print(
            f"not compared with PyTorch, too large: {', '.join(uncompared)} (every graph is valid ONNX)", soft_wrap=True
        )
    linked_size = f" and {shared / 1e6:.1f} MB of the checkpoint's own files" if shared else ""
    console.print(
        f"[bold]{out}[/bold]: {manifest.family_name}, {manifest.precision}, {len(manifest.stages)} stages, "
        f"{own / 1e6:.1f} MB{linked_size}. Ask it: rediprune run {out} --image photo.jpg --prompt 'What is this?'",
        highlight=False,
        soft_wrap=True,
    )
