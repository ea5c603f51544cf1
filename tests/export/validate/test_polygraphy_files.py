"""`polygraphy run` repeats the comparison from the saved files, and fails what `validate` fails."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from rediprune.export.validate.polygraphy_files import polygraphy_command
from rediprune.export.validate.validate import validate
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import Bundle


def polygraphy(command: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == "polygraphy"
    run = [sys.executable, "-c", "import sys; from polygraphy.tools._main import main; sys.exit(main())", *words[1:]]
    return subprocess.run(run, capture_output=True, text=True)


@pytest.mark.process
@pytest.mark.parametrize(("name", "stage"), [("llava", "vision"), ("llava_fp16", "language")])
def test_polygraphy_agrees(name: str, stage: str, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_of(name), tmp_path / "bundle"))
    report = validate(folder, stages=[stage], save_inputs=tmp_path / "io")
    assert report.passed
    bundle = Bundle.open(folder)
    command = polygraphy_command(bundle, "ort", report.stages, tmp_path / "io")
    done = polygraphy(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    cases = 3 if stage == "language" else 2
    assert f"Passed: {cases}/{cases} iterations" in done.stdout
    if stage != "vision":
        return
    graph = onnx.load(bundle.path("onnx/vision.onnx"), load_external_data=False)
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("layers.1.mlp.fc1.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    onnx.save(graph, bundle.path("onnx/vision.onnx"))
    done = polygraphy(command)
    assert done.returncode == 1 and "FAILED" in done.stdout


def test_with_tensorrt_the_portable_graph_is_run_by_it(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_of("llava"))
    rows = validate(bundle.folder, stages=["project"]).stages
    command = shlex.split(polygraphy_command(bundle, "tensorrt", rows, tmp_path))
    assert command[2:4] == [str(bundle.path("onnx/project.onnx")), "--trt"]
    assert command[-2] == "--atol" and float(command[-1]) > 0


def test_a_folder_that_cannot_be_written_to(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RedipruneError, match=r"cannot be written to .*--save-inputs"):
        validate(bundle_of("llava"), stages=["embed"], save_inputs=tmp_path / "file" / "io")
