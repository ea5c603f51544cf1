"""`rediprune new-checkpoint`: random weights in the real layout."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...runtime.cli.arguments import (
    needs_extra,
)
from ...runtime.cli.progress import waiting
from ...runtime.errors import RedipruneError


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "new-checkpoint",
        epilog="Example:\n\n    rediprune new-checkpoint checkpoints/tiny --family llava_next_video --decoder qwen2",
    )(needs_extra(new_checkpoint))


def new_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Where to.")],
    family: Annotated[str, typer.Option(help="llava, llava_next_video or video_llava.")] = "llava",
    tower: Annotated[str, typer.Option(help="clip or siglip.")] = "clip",
    decoder: Annotated[str, typer.Option(help="llama or qwen2.")] = "llama",
    size: Annotated[str, typer.Option(help="tiny, real (CLIP-L/336 + 0.5 B or 1.1 B) or 7b.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Make a checkpoint with random weights in the real layout, to try and to measure with."""
    from ..checkpoint.maker import make_checkpoint

    try:
        with waiting("making weights", False):
            make_checkpoint(folder, family, tower, decoder, size, seed)
    except ValueError as error:
        raise RedipruneError(str(error)) from error
    Console().print(f"[bold]{folder}[/bold]: {family}, {tower} + {decoder}, {size}, random weights", highlight=False)
