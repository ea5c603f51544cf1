"""Right after tracing: a graph must run, and give what its eager module gives, at other sizes than the example's."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from ..graphs.stages import Stage
from ..runtime.errors import RedipruneError
from .checkpoint import Skeleton

# A wrongly traced dimension fails or is off by far more; `validate` is what measures the error.
_LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 3e-2}

# ONNX Runtime packs weights for faster products, which doubles their memory: not worth it above this many bytes.
_PACK_LIMIT = 3 << 29

SIZES: tuple[dict[str, int], ...] = (
    {"frames": 1, "patches": 9, "question": 1, "kept": 1, "batch": 1, "tokens": 1, "cache": 12},
    {"frames": 2, "patches": 16, "question": 4, "kept": 2, "batch": 2, "tokens": 3, "cache": 16},
    {"frames": 3, "patches": 25, "question": 11, "kept": 7, "batch": 1, "tokens": 9, "cache": 33},
)


def check_stage(stage: Stage, path: Path, skeleton: Skeleton) -> float:
    """Run a stage's graph in ONNX Runtime beside its eager module at each of `SIZES`.

    Returns:
        The largest relative error ‖graph − eager‖ / ‖eager‖.

    Raises:
        RedipruneError: the graph does not run at a size, or an output differs from the eager module's.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if skeleton.parameter_bytes(stage) > _PACK_LIMIT:
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # Half-precision weights, single-precision arithmetic: PyTorch has no fast half arithmetic on CPUs.
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in skeleton.weights.load(stage.module, skeleton.buffers, skeleton.dtype).items()
    }
    worst = 0.0
    for seed, sizes in enumerate(SIZES):
        inputs = stage.random_inputs(sizes, skeleton.dtype, seed)
        eager = [value.float() if value.is_floating_point() else value for value in inputs]
        with torch.no_grad():
            expected = torch.func.functional_call(stage.module, state, tuple(eager), tie_weights=False)
        expected = expected if isinstance(expected, tuple) else (expected,)
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
