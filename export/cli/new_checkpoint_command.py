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
    folder: Annotated[Path, typer.Argument(help="The folder to write the checkpoint to.")],
    family: Annotated[
        str,
        typer.Option(
            help="The model family: llava, llava_next, llava_next_video, llava_onevision, video_llava, internvl, qwen2_vl, qwen2_5_vl, "
            "qwen3_vl, smolvlm or idefics3."
        ),
    ] = "llava",
    tower: Annotated[
        str | None, typer.Option(help="The vision tower: clip or siglip. Default: the family's first.")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="The language model: llama, mistral, qwen2 or qwen3. Default: the family's first."),
    ] = None,
    size: Annotated[
        str,
        typer.Option(help="The size: tiny, real (CLIP-L/336 with 0.5 or 1.1 billion parameters of the decoder) or 7b."),
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The seed of the random weights.")] = 0,
) -> None:
    """Make a checkpoint with random weights in the layout of real ones, to try things and to measure with."""
    from ..checkpoint.maker import make_checkpoint

    try:
        with waiting("making weights", False):
            make_checkpoint(folder, family, tower, decoder, size, seed)
    except ValueError as error:
        raise RedipruneError(str(error)) from error
    parts = " + ".join(part for part in (tower, decoder) if part)
    named = ", ".join(part for part in (family, parts, size) if part)
    Console().print(f"[bold]{folder}[/bold]: {named}, random weights", highlight=False)
