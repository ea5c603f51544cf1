"""The options of `rediprune calibrate`."""

from typing import Annotated

import typer

Skip = Annotated[
    list[str] | None,
    typer.Option(
        help="A pattern of layers to leave in the baseline's precision, e.g. '*.down_proj'. Repeat the option to give "
        "several."
    ),
]
Backend = Annotated[
    str | None, typer.Option(help="A backend that the bundle is meant for; refuse a recipe that it does not take.")
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="The most that may be lost: error=0.02 (of each stage's outputs) or accuracy=1 (points of correct "
        "answers). As few layers as that takes stay in the baseline's precision."
    ),
]
Questions = Annotated[
    int, typer.Option(help="The largest number of questions, asked at keep 1 and 0.15, for a budget of accuracy.")
]
Force = Annotated[bool, typer.Option("--force", help="Redo the stages that an earlier run has finished.")]
