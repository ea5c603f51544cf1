"""The options of `rediprune run`."""

from pathlib import Path
from typing import Annotated

import typer

from .arguments import BACKEND_HELP

Prompts = Annotated[
    list[str], typer.Option(help="The question. Repeat the option to ask further turns of one dialogue.")
]
Image = Annotated[list[Path] | None, typer.Option(help="An image file. Repeat the option to give several.")]
Video = Annotated[list[Path] | None, typer.Option(help="A video file. Repeat the option to give several.")]
Keep = Annotated[
    str | None,
    typer.Option(
        help="The ratio of visual tokens to keep in each frame, in (0, 1]. 1 keeps all of them; auto keeps as many as the "
        "picture is worth (needs a bundle calibrated with --keep-auto). Default: the bundle's."
    ),
]
Count = Annotated[
    int | None, typer.Option(help="The number of visual tokens to keep in each frame, in place of --keep.")
]
Alpha = Annotated[
    float | None,
    typer.Option(help="The weight of relevance to the question against diversity; 0 selects by diversity alone."),
]
Tau = Annotated[
    float | None,
    typer.Option(help="Filter the candidates by their relevance to the question first; 0 turns the filter off."),
]
Frames = Annotated[
    int | None,
    typer.Option(
        help="The number of frames to sample from each video, at even distances. Default: the checkpoint's, or 8."
    ),
]
FrameTolerance = Annotated[
    float | None,
    typer.Option(
        help="Reuse the features of an earlier, similar frame where no region differs by more than this many colour "
        "levels (of 255). Default: encode every frame."
    ),
]
PruneTiles = Annotated[
    bool,
    typer.Option(
        "--prune-tiles",
        help="Prune images that the model sees in tiles (LLaVA-NeXT); by default they are not pruned.",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        help="Positions of the kept tokens: compact (one after another) or original (where they stood among all of "
        "them). Default: the bundle's."
    ),
]
MinPixels = Annotated[
    int | None,
    typer.Option(
        help="The fewest pixels that a picture is scaled to, where the model takes pictures of any size (Qwen-VL). "
        "Default: the checkpoint's."
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="The most pixels that such a picture is scaled to: fewer make fewer tokens, and a faster answer."
    ),
]
Scope = Annotated[
    str | None,
    typer.Option(
        help="What a budget is for: frame (each has its own), or clip (one for all frames of a video, and for all images of one "
        "size; --keep is then the mean). Default: frame."
    ),
]
MinPerFrame = Annotated[
    int | None,
    typer.Option(help="The least number of tokens kept of a frame, with --scope clip or --keep auto. Default: 1."),
]
FirstToken = Annotated[
    str | None,
    typer.Option(
        help="Keep as many tokens as let the first token come within this time, such as 300ms or 1.5s, by what the language "
        "model takes on this machine."
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="The greatest number of tokens that the answer may have.")]
Temperature = Annotated[
    float | None, typer.Option(help="The sampling temperature; 0 decodes greedily. Default: the checkpoint's.")
]
TopK = Annotated[int | None, typer.Option(help="Sample among this many of the most likely tokens.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample among the most likely tokens whose probabilities add up to this.")
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Penalise tokens that have occurred already; 1 is off, larger values repeat less."),
]
Seed = Annotated[
    int | None,
    typer.Option(help="The seed of the random numbers that sampling uses; given alone, it turns sampling on."),
]
Stop = Annotated[
    list[str] | None, typer.Option(help="A string that ends the answer. Repeat the option to give several.")
]
Show = Annotated[
    Path | None, typer.Option(help="Write a picture of the kept patches to this file (.png, .jpg or .webp).")
]
Backend = Annotated[str, typer.Option(help=BACKEND_HELP)]
Eager = Annotated[
    list[str] | None,
    typer.Option(help="Run this stage in eager PyTorch, to find one that drifts. Repeat the option to name several."),
]
Threads = Annotated[int, typer.Option(help="The number of threads of each stage; 0 leaves it to the backend.")]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat/--raw", help="Put the prompt into the checkpoint's chat template, or pass it to the model as it is."
    ),
]
