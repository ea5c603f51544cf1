"""The options of `rediprune batch`."""

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[
    str, typer.Argument(help="The bundle, a folder or NAME=FOLDER; rows name it by its name, or NAME@KEEP.")
]
Requests = Annotated[
    Path,
    typer.Argument(
        help="The rows: a .jsonl file in OpenAI's batch format, a folder of pictures, or a .csv file with a column image "
        "(and maybe prompt, id)."
    ),
]
Out = Annotated[
    Path, typer.Option("-o", "--out", help="The file of the answers, a line of JSON a row, in their order.")
]
Prompt = Annotated[
    str | None, typer.Option(help="The question about every picture of a folder, or of a .csv file without its own.")
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer about a picture of a folder or .csv file; default: 256.")
]
Temperature = Annotated[
    float | None, typer.Option(help="Temperature for a folder or .csv file; 0 is greedy. Default: the checkpoint's.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop with exit code 2 at the first row that cannot be answered.")
]
MaxBatch = Annotated[int, typer.Option(min=1, help="Most rows decoded together.")]
AllowedLocalMediaPath = Annotated[
    Path | None,
    typer.Option(
        help="Folder that file:// URLs and absolute paths may name files in. Relative paths are always those of files beside "
        "or below the input."
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds that a row may take once it is taken up.")]
OnRay = Annotated[
    bool,
    typer.Option("--ray", help="Answer on a Ray cluster, or on a Ray started here: see the page Beyond one machine."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Address of the Ray cluster, auto for the one of this machine; default: start one here."),
]
Workers = Annotated[int, typer.Option(min=1, help="With --ray: processes that load the bundle.")]
WorkerCpus = Annotated[float, typer.Option(min=0.1, help="With --ray: CPU cores that each of them takes.")]
