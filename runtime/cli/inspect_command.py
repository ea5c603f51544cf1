"""`rediprune inspect`: what a bundle holds."""

import json
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..bundle import Bundle
from .arguments import BundleArgument, JsonOption
from .sensitivity_table import sensitivity_table


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("inspect", epilog="Example:\n\n    rediprune inspect engines/demo")(inspect)


def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check every file of a bundle against its hash and print what the bundle holds."""
    opened = Bundle.open(bundle, remember=False)
    manifest = opened.manifest
    if as_json:
        print(json.dumps(manifest.model_dump(mode="json"), indent=2))
        return
    console = Console()
    console.print(f"[bold]{manifest.family_name}[/bold] bundle, {manifest.precision}, tool {manifest.tool_version}")
    console.print(f"source: {manifest.source.name} (config {manifest.source.config_sha256[:12]})", highlight=False)
    decoder = manifest.decoder
    console.print(
        f"{manifest.tower} {manifest.image_size} px, {manifest.channels} wide · {manifest.language_model} "
        f"{decoder.layers} × {decoder.width}, {decoder.max_positions} positions",
        highlight=False,
    )
    for kind, spec in manifest.modalities.items():
        leading = f"{spec.leading} + " if spec.leading else ""
        tiles = ", in tiles (not pruned unless asked)" if spec.tiled else ""
        console.print(f"{kind}: {leading}{spec.rows} × {spec.columns} = {spec.patches} tokens a frame{tiles}")
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
    console.print("all files are as they were when the bundle was made")


def _ports(ports: list[Any]) -> str:
    shown = [f"{port.name} {list(port.shape)}".replace("'", "") for port in ports[:5]]
    return escape("\n".join(shown + ([f"… {len(ports) - 5} more"] if len(ports) > 5 else [])))
