"""A stage's inputs and eager PyTorch's outputs as files that Polygraphy reads, to take a failing stage apart.

    polygraphy run GRAPH --onnxrt --load-inputs STAGE-inputs.json --load-outputs STAGE-outputs.json …

compares as `rediprune validate` does; docs/validate.md says how to go on from there to single layers and to a smaller
graph that still fails.
"""

import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...runtime.backends.language_inputs import LanguageInputs
from ...runtime.backends.session import cast_inputs
from ...runtime.bundle import Bundle, StageSpec
from ...runtime.errors import RedipruneError
from .cases import Arrays, StageCase
from .stage_comparison import StageRow


def save_cases_for_polygraphy(
    bundle: Bundle, stage: str, cases: Iterable[StageCase], folder: Path
) -> tuple[Path, Path]:
    """Write a stage's cases in Polygraphy's JSON format.

    Of `language` the prefill is written, over an empty KV cache: inputs by the graph's names, and of the outputs the
    logits [1, 1, V] of the prompt's last position.

    Args:
        bundle: the bundle.
        stage: its name.
        cases: its inputs and what eager PyTorch gives for them.
        folder: where to; see `make_folder`.

    Returns:
        The files of the inputs (a list of feeds) and of the outputs (Polygraphy's `RunResults`, of a runner "eager").

    Raises:
        RedipruneError: the folder cannot be written to.
    """
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    spec = bundle.manifest.stages[stage]
    feeds, outputs = [], []
    for case in cases:
        feed, expected = _prefill(spec, case) if stage == "language" else (case.input.feed, case.expected)
        feeds.append(cast_inputs(spec, feed))
        outputs.append(expected)
    results = RunResults()
    results.add(outputs, runner_name="eager")
    files = folder / f"{stage}-inputs.json", folder / f"{stage}-outputs.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_json(feeds, str(files[0]))
        save_json(results, str(files[1]))
    except OSError as error:
        raise RedipruneError(
            f"'{folder}' cannot be written to ({error.strerror}); give --save-inputs another"
        ) from error
    return files


def polygraphy_command(bundle: Bundle, backend: str, rows: Iterable[StageRow], folder: Path) -> str:
    """The command that repeats a stage's comparison from the files that `save_cases_for_polygraphy` wrote.

    Args:
        bundle: the bundle.
        backend: what ran the stage; Polygraphy runs the graph that ONNX Runtime or TensorRT reads.
        rows: of one stage.
        folder: where the files are.
    """
    rows = list(rows)
    stage = rows[0].stage
    runner, graph = ("--trt", bundle.path(bundle.manifest.stages[stage].file))
    if not backend.startswith("tensorrt"):
        runner, graph = "--onnxrt", bundle.graph("ort", stage)
    tolerated = [row.tolerance for row in rows if row.judged_by == "max_abs" and row.tolerance is not None]
    words = ["polygraphy", "run", str(graph), runner]
    words += ["--load-inputs", str(folder / f"{stage}-inputs.json")]
    words += ["--load-outputs", str(folder / f"{stage}-outputs.json")]
    words += ["--check-error-stat", "max", "--rtol", "0"]
    if tolerated:  # a quantised stage is held to a relative error over all elements, which has no option there
        words += ["--atol", f"{max(tolerated):.3g}"]
    return shlex.join(words)


def make_folder(folder: Path) -> None:
    """Make the folder for the files, before any work is done for them.

    Raises:
        RedipruneError: it cannot be made or written to.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RedipruneError(
            f"'{folder}' cannot be written to ({error.strerror}); give --save-inputs a folder that can be"
        ) from error


def _prefill(spec: StageSpec, case: StageCase) -> tuple[Arrays, Arrays]:
    """The decoder's first step: its feed by the graph's names, and what eager PyTorch gives after it."""
    prompt = case.input.feed["prompt"]  # [1, S, D]
    sizes = {"batch": 1, "cache": prompt.shape[1]}
    feed: Arrays = {"inputs_embeds": prompt, "write_index": np.zeros(1, np.int64)}
    positions = case.input.feed.get("positions")
    tokens = prompt.shape[1]
    deepstack = case.input.feed.get("deepstack")
    given = (None if array is None else array[:, :tokens] for array in (positions, deepstack))
    feed |= LanguageInputs(spec).feed([0], tokens, *given)
    for port in spec.inputs:
        if port.name.startswith("past."):
            feed[port.name] = np.zeros([sizes[d] if isinstance(d, str) else d for d in port.shape], port.dtype)
    return feed, {"logits": case.expected["logits"][None, :1]}
