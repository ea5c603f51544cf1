"""The options of `rediprune report`."""

from pathlib import Path
from typing import Annotated

import typer

from ...runtime.cli.arguments import BACKEND_HELP

Bundle = Annotated[
    list[Path],
    typer.Argument(help="A bundle, and those that were calibrated from it. Given alone, those that lie beside it."),
]
Data = Annotated[
    Path | None,
    typer.Option(help="A JSONL file of {image or video, question, answer, kind}. Default: the built-in task."),
]
Images = Annotated[
    int, typer.Option(min=0, help="The number of pictures of the built-in task, with about four questions each.")
]
Clips = Annotated[
    int, typer.Option(min=0, help="The number of clips of the built-in task, with about four questions each.")
]
Keep = Annotated[str, typer.Option(help="The keep ratios at which answers and times are measured, comma separated.")]
Kept = Annotated[str, typer.Option(help="The keep ratios at which kept sets are compared, comma separated.")]
Samples = Annotated[
    int, typer.Option(min=1, help="The number of questions on which stages and kept sets are compared.")
]
Backend = Annotated[str, typer.Option(help=BACKEND_HELP)]
Frames = Annotated[int, typer.Option(min=1, help="The number of frames to sample from a video.")]
Threads = Annotated[int, typer.Option(min=0, help="The number of threads of each stage; 0 leaves it to the backend.")]
Seed = Annotated[int, typer.Option(min=0, help="The seed of the choice of samples.")]
Runs = Annotated[int, typer.Option(min=0, help="The number of turns of the bench; 0 leaves times and memory out.")]
Limit = Annotated[float, typer.Option(help="The seconds that a turn may take.")]
Tolerance = Annotated[float, typer.Option(min=0, help="The points of accuracy that the recommended bundle may lose.")]
Out = Annotated[
    Path | None, typer.Option(help="Keep every reply in this JSONL file. The same command goes on from it.")
]
Page = Annotated[Path | None, typer.Option(help="Write the report to this Markdown file, with its picture beside it.")]
