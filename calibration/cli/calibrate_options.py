"""The options of `rediprune calibrate`."""

from pathlib import Path
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
KeepAuto = Annotated[
    str | None,
    typer.Option(
        help="Quantise nothing: find the score at which the choice of tokens may end, so that no more than accuracy=POINTS of "
        "correct answers are lost against keeping all tokens, and record it in BUNDLE for `--keep auto`."
    ),
]
MostKept = Annotated[
    float,
    typer.Option("--most", min=0.0, max=1.0, help="With --keep-auto: the largest ratio of tokens that is ever kept."),
]
OutOrNone = Annotated[Path | None, typer.Option("-o", "--out", help="The folder of the bundle to make.")]
Force = Annotated[bool, typer.Option("--force", help="Redo the stages that an earlier run has finished.")]
