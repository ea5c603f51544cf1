"""Right after tracing: a graph must be valid, run, and give what its eager module gives, at other sizes than traced."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from ...graphs.stages import Stage
from ...runtime.errors import RedipruneError
from ..checkpoint.reader import Skeleton

# A wrongly traced dimension fails or is off by far more; `validate` is what measures the error.
_LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 3e-2}

# Parameters of the largest stage that is compared whole: each side reads them once per size. Of a larger one the first
# layers are compared, where the others are made after them (`replicate_layers`), if these have no more than COMPARED: what is
# mapped and converted of them counts as memory.
COMPARED_WHOLE = 1 << 27
COMPARED = 1 << 29

SIZES: tuple[dict[str, int], ...] = (
    {
        "frames": 1,
        "patches": 9,
        "question": 1,
        "kept": 1,
        "batch": 1,
        "tokens": 1,
        "cache": 12,
        "groups": 6,
        "windows": 1,
    },
    {
        "frames": 2,
        "patches": 16,
        "question": 4,
        "kept": 2,
        "batch": 2,
        "tokens": 3,
        "cache": 16,
        "groups": 9,
        "windows": 4,
    },
    {
        "frames": 3,
        "patches": 25,
        "question": 11,
        "kept": 7,
        "batch": 1,
        "tokens": 9,
        "cache": 33,
        "groups": 20,
        "windows": 3,
    },
)


def check_graph(stage: Stage, path: Path) -> None:
    """Hold a stage's graph against the ONNX standard: operators, types, and shapes as onnx infers them.

    The checker refuses weights in files that have hard links (onnx/onnx, checker.cc, "multiple hard links"). It gets
    the graph with inputs in their place; that files hold what the graph refers to was checked by safetensors.

    Raises:
        RedipruneError: the graph is not valid.
    """
    model = onnx.load(path, load_external_data=False)
    weights = [tensor for tensor in model.graph.initializer if tensor.external_data]
    for tensor in weights:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RedipruneError(
            f"the traced '{stage.name}' graph is not valid ONNX ({str(error).splitlines()[0]}); this is a fault of the "
            "tracer, please report it with the checkpoint's config"
        ) from error


def check_stage(stage: Stage, path: Path, skeleton: Skeleton) -> float:
    """Run a stage's graph in ONNX Runtime beside its eager module at each of `SIZES`.

    Both read the weights as they go: ONNX Runtime maps the files and runs the graph as it is written, PyTorch is given
    a weight when a function asks for it.

    Returns:
        The largest relative error ‖graph − eager‖ / ‖eager‖.

    Raises:
        RedipruneError: the graph does not run at a size, or an output differs from the eager module's.
    """
    answers = []
    with torch.no_grad(), skeleton.weights.supplied(stage.module, skeleton.buffers, skeleton.dtype):
        for seed, sizes in enumerate(SIZES):  # before the graph is opened: not both in memory
            inputs = stage.random_inputs(sizes, skeleton.dtype, seed)
            answer = stage.module(*(value.float() if value.is_floating_point() else value for value in inputs))
            answers.append((inputs, answer if isinstance(answer, tuple) else (answer,)))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # folds converted weights into memory
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # by default all Casts run first and fill the memory
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for sizes, (inputs, expected) in zip(SIZES, answers, strict=True):
        feed = {port.name: value.numpy() for port, value in zip(stage.inputs, inputs, strict=True)}
        used = {name: sizes[name] for name in sorted(stage.symbols())}
        try:
            got = session.run([port.name for port in stage.outputs], feed)
        except Exception as error:
            raise RedipruneError(f"the traced '{stage.name}' graph does not run at {used}: {error}") from error
        for port, ours, theirs in zip(stage.outputs, got, expected, strict=True):
            difference = relative_error(np.asarray(ours), theirs.numpy())
            worst = max(worst, difference)
            if not difference <= _LARGEST_ERROR[skeleton.dtype]:
                raise RedipruneError(
                    f"the traced '{stage.name}' graph differs from PyTorch at {used}: output '{port.name}' has a relative "
                    f"error of {difference:.2g}; this is a fault of the tracer, please report it with the checkpoint's config"
                )
    return worst


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """‖ours − theirs‖ / ‖theirs‖; integers must be equal (0 or infinity)."""
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.dtype.kind in "iub":
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    difference = np.linalg.norm((ours.astype(np.float64) - theirs).ravel())
    return float(difference / max(float(np.linalg.norm(theirs.astype(np.float64).ravel())), 1e-30))
