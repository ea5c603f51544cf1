"""A bad request, Ctrl-C and the end of the process do not wait for a model that is still loading."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rediprune.runtime import Pipeline, RedipruneError

SLOW = 30.0  # seconds that a model takes to load here
SOON = 15.0  # the interpreter and its imports included, on a busy machine


def run_script(script: str, interrupt_at: str = "") -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr, and the seconds from the line `interrupt_at`, or from the start, to the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    begin = time.monotonic()
    if interrupt_at:
        assert process.stdout is not None and process.stdout.readline() == interrupt_at + "\n"
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=2 * SLOW)
    return process.returncode, out, errors, time.monotonic() - begin


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that takes ONNX Runtime many seconds to load: it multiplies constants."""
    size = 1500
    weight = numpy_helper.from_array(np.full((size, size), 1 / size, np.float32), "w0")
    nodes = [helper.make_node("MatMul", [f"w{at}", "w0"], [f"w{at + 1}"]) for at in range(100)]
    nodes.append(helper.make_node("Add", ["x", "w100"], ["y"]))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "xy"]
    graph = helper.make_graph(nodes, "slow", ports[:1], ports[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("slow") / "slow.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end waits for the thread")
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.5])
def test_the_process_ends_with_its_exit_code_while_onnx_runtime_loads(delay: float, slow_model: Path) -> None:
    """Without care it aborts (134): Python unwinds the thread's C++, or destroys what it works on."""
    script = f"""
import sys, time
import onnxruntime
from rediprune.runtime import background
background.start(lambda: onnxruntime.InferenceSession({str(slow_model)!r}, providers=["CPUExecutionProvider"]))
time.sleep({delay})
print("said", end="")
sys.exit(7)
"""
    for _ in range(3):
        code, out, errors, _ = run_script(script)
        assert (code, out, errors) == (7, "said", "")


def never(*arguments: Any) -> Any:
    """Opens a stage, in a long time."""
    time.sleep(SLOW)
    raise AssertionError("nobody waits for this")


def test_a_bad_request_does_not_wait(
    bundle_of: Callable[[str], Path], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rediprune.runtime.pipeline.open_session", never)
    (tmp_path / "text.jpg").write_text("this is no picture")
    pipeline = Pipeline.load(bundle_of("llava"))
    begin = time.monotonic()
    for images, options in (
        ([tmp_path / "text.jpg"], {}),
        ([photo, tmp_path / "gone.jpg"], {}),  # all pictures are read before any is encoded
        ([photo], {"keep": 1.5}),
        ([photo], {"top_p": 0}),
    ):
        with pytest.raises(RedipruneError):
            pipeline.generate("What?", images, **options)
    with pytest.raises(RedipruneError):
        pipeline.select("", [photo])
    assert time.monotonic() - begin < SOON


def command(bundle: Path, *arguments: str) -> str:
    """A script that is the command line, but for stages that take long to open."""
    return f"""
import sys, time
import rediprune.runtime.pipeline as pipeline
def slowly(*arguments):
    sys.stdout.write("loading\\n")  # in one piece: two stages are opened at a time
    sys.stdout.flush()
    time.sleep({SLOW})
pipeline.open_session = slowly
sys.argv = {["rediprune", "run", str(bundle), "--prompt", "What?", *arguments]!r}
from rediprune.runtime.__main__ import main
main()
"""


@pytest.mark.process
def test_the_command_line_refuses_a_bad_image_at_once(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is no picture")
    code, _, errors, seconds = run_script(command(bundle_of("llava"), "--image", str(tmp_path / "text.jpg")))
    assert code == 2 and errors.startswith("error: ") and len(errors.splitlines()) == 1
    assert seconds < SOON


@pytest.mark.process
def test_the_command_line_is_interrupted_at_once(bundle_of: Callable[[str], Path], photo: Path) -> None:
    code, _, errors, seconds = run_script(command(bundle_of("llava"), "--image", str(photo)), "loading")
    assert (code, errors) == (130, "interrupted\n")
    assert seconds < SOON
