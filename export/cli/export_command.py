"""`rediprune export`: a bundle of a checkpoint."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ...runtime.bundle import WEIGHTS
from ...runtime.cli.arguments import (
    JsonOption,
    Out,
    needs_extra,
)
from ...runtime.cli.progress import stage_progress
from ...runtime.errors import RedipruneError

if TYPE_CHECKING:
    from ..checkpoint.reader import Checkpoint


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "export",
        epilog="""Examples:\n
    rediprune export path/to/llava-1.5-7b-hf -o engines/llava\n
    rediprune export llava-hf/llava-1.5-7b-hf -o engines/llava --precision fp16\n
    rediprune export path/to/llava-1.5-7b-hf -o engines/front --stages vision,select,project,embed\n
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
    stages: Annotated[
        str | None,
        typer.Option(
            help="The stages, separated by commas: all of them, or all but language, for a server whose answers are decoded "
            "elsewhere (rediprune serve --decoder). Such a bundle holds no weight of the decoder."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Export stages again that are up to date.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare each graph with PyTorch.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Trace a checkpoint's stages into a bundle. A stage that is up to date is not exported again."""
    from ..checkpoint.reader import Checkpoint
    from ..exporter import export_bundle

    opened = Checkpoint.open(checkpoint, revision)
    encoder = stages is not None and _without_language(stages, opened)
    with stage_progress(as_json) as report:
        bundle = export_bundle(opened, out, precision, force, check, report, copy, encoder)
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
    if not shared and not copy and not encoder:
        console.print("the weights were copied: this file system cannot have hard links to the checkpoint's files")
    if uncompared:
        console.print(
            f"not compared with PyTorch, too large: {', '.join(uncompared)} (every graph is valid ONNX)", soft_wrap=True
        )
    hint = f"Ask it: rediprune run {out} --image photo.jpg --prompt 'What is this?'"
    if encoder:
        hint = f"Serve it: rediprune serve {out} --decoder http://HOST:PORT/v1"
    linked_size = f" and {shared / 1e6:.1f} MB of the checkpoint's own files" if shared else ""
    console.print(
        f"[bold]{out}[/bold]: {manifest.family_name}, {manifest.precision}, {len(manifest.stages)} stages, "
        f"{own / 1e6:.1f} MB{linked_size}. {hint}",
        highlight=False,
        soft_wrap=True,
    )


def _without_language(named: str, checkpoint: "Checkpoint") -> bool:
    """Whether the stages named are all but `language`.

    Raises:
        RedipruneError: they are neither these nor all.
    """
    towers = [modality.stage for modality in checkpoint.family.modalities(checkpoint.config).values()]
    names = [*dict.fromkeys(towers), "select", "project", "embed", "language"]
    given = {name.strip() for name in named.split(",")}
    given -= {"select_clip"} if "select" in given else set()  # which comes with it
    if given == set(names):
        return False
    front = [name for name in names if name != "language"]
    if given != set(front):
        raise RedipruneError(f"--stages takes {','.join(names)} or {','.join(front)}, not '{named}'")
    return True
