"""Options that the commands which quantise have in common."""

from pathlib import Path
from typing import Annotated

import typer

from ...runtime.errors import RedipruneError

RecipeOption = Annotated[
    str,
    typer.Option(
        help="The quantization scheme of all stages (int8, int8-dynamic, int8-weights, fp8, int4, fp16, bf16), or STAGE=SCHEME for single "
        "ones, separated by commas. STAGE=unchanged leaves a stage as it is."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="A folder of images and videos, or a JSONL file of questions, to calibrate with. Default: a built-in set."
    ),
]
SamplesOption = Annotated[int, typer.Option(help="The largest number of samples to calibrate with.")]
SeedOption = Annotated[int, typer.Option(help="The seed that selects the samples.")]
RangesOption = Annotated[
    str, typer.Option(help="How the range of an activation is chosen: minmax, percentile or entropy.")
]
SmoothingOption = Annotated[
    float,
    typer.Option(
        help="SmoothQuant's migration strength, in [0, 1]: how much of the activations' outliers the weights take over."
    ),
]
SmoothOption = Annotated[bool, typer.Option("--smooth/--no-smooth", help="Apply SmoothQuant, or do without.")]
GptqOption = Annotated[
    bool, typer.Option("--gptq/--no-gptq", help="Round INT4 weights by GPTQ, from activations, or to the nearest.")
]
# `--alpha` is the weight of ReDiPrune's selection in `rediprune run`; earlier versions called the smoothing so too.
AlphaOption = Annotated[float | None, typer.Option("--alpha", hidden=True)]


def smoothing_of(smoothing: float, smooth: bool, alpha: float | None, default: float | None) -> float | None:
    """The migration strength that the options ask for; None does without SmoothQuant.

    Raises:
        RedipruneError: `--alpha`, the old name, says something else than `--smoothing`.
    """
    if alpha is not None and smoothing not in (alpha, default):
        raise RedipruneError(f"--alpha {alpha:g} is the old name of --smoothing {smoothing:g}; give --smoothing alone")
    if not smooth:
        return None
    return smoothing if alpha is None else alpha
