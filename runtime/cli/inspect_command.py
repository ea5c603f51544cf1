"""`rediprune inspect`: what a bundle holds."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..backend_choice import choose_backends
from ..bundle import Bundle
from ..errors import RedipruneError
from .arguments import BundleArgument, JsonOption
from .sensitivity_table import sensitivity_table


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("inspect", epilog="Example:\n\n    rediprune inspect engines/demo")(inspect)


def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check every file of a bundle against its hash and print what the bundle holds."""
    opened = Bundle.open(bundle, remember=False)
    manifest = opened.manifest
    automatic = _automatic(opened)
    if as_json:
        print(json.dumps(manifest.model_dump(mode="json") | {"auto": automatic}, indent=2))
        return
    console = Console()
    console.print(f"[bold]{manifest.family_name}[/bold] bundle, {manifest.precision}, tool {manifest.tool_version}")
    console.print(f"source: {manifest.source.name} (config {manifest.source.config_sha256[:12]})", highlight=False)
    decoder = manifest.decoder
    size = f"{manifest.image_size} px" if manifest.image_size else "pictures of any size"
    console.print(
        f"{manifest.tower} {size}, {manifest.channels} wide · {manifest.language_model} "
        f"{decoder.layers} × {decoder.width}, {decoder.max_positions} positions",
        highlight=False,
    )
    for kind, spec in manifest.modalities.items():
        leading = f"{spec.leading} + " if spec.leading else ""
        tiles = ", in tiles (not pruned unless asked)" if spec.tiled else ""
        grid = f"{leading}{spec.rows} × {spec.columns} = {spec.patches} tokens a frame{tiles}"
        console.print(f"{kind}: {'as many tokens as its size takes' if spec.dynamic else grid}")
    table = Table("stage", "inputs", "outputs", "precision", "size")
    for name, stage in manifest.stages.items():
        size = sum(opened.path(file).stat().st_size for file in stage.files)
        table.add_row(name, _ports(stage.inputs), _ports(stage.outputs), stage.precision, f"{size / 1e6:.2f} MB")
    console.print(table)
    if manifest.calibration is not None and manifest.calibration.sensitivity:
        made = manifest.calibration
        console.print(sensitivity_table(made.sensitivity, made))
    for backend, engine in manifest.engines.items():
        for stage in engine.stages if engine.files else ():
            opened.check_built(backend, stage)
        targets = f" for {', '.join(engine.compute_capability)}" if engine.compute_capability else ""
        stages = ", ".join(f"{stage} {engine.precision.get(stage, '')}".strip() for stage in engine.stages)
        console.print(f"engines: {backend} with {engine.library} {engine.version}{targets}; {stages}", highlight=False)
    for says in _says_automatic(automatic):
        console.print(says, highlight=False, soft_wrap=True)
    console.print("all files are as they were when the bundle was made")


def _automatic(bundle: Bundle) -> dict[str, dict[str, str]]:
    """What `--backend auto` runs each stage on here, and why; under `none` why the bundle cannot run."""
    try:
        return {stage: asdict(choice) for stage, choice in choose_backends(bundle).items()}
    except RedipruneError as error:
        return {"none": {"backend": "", "reason": str(error)}}


def _says_automatic(automatic: dict[str, dict[str, str]]) -> Iterator[str]:
    """A line for each backend that `auto` takes."""
    alike: dict[tuple[str, str], list[str]] = {}
    for stage, choice in automatic.items():
        alike.setdefault((choice["backend"], choice["reason"]), []).append(stage)
    for (backend, reason), stages in alike.items():
        yield f"auto: {', '.join(stages)} on {backend}: {reason}" if backend else f"auto: {reason}"


def _ports(ports: list[Any]) -> str:
    shown = [f"{port.name} {list(port.shape)}".replace("'", "") for port in ports[:5]]
    return escape("\n".join(shown + ([f"… {len(ports) - 5} more"] if len(ports) > 5 else [])))
