"""Engines of every backend that serves a bundle on this machine, and of TensorRT for machines with a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...runtime.backend_choice import choose_backends
from ...runtime.backends.gpu import compute_capability
from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from ..exporter import Progress
from .cpu_engines import BACKENDS as CPU_BACKENDS
from .cpu_engines import build_cpu
from .tensorrt_engines import build_tensorrt


@dataclass(frozen=True)
class Built:
    """What became of a backend.

    Attributes:
        backend: its name.
        outcome: what was built, or why nothing was.
        runs: the stages that `auto` runs on it here, or what it waits for.
    """

    backend: str
    outcome: str
    runs: str


def build_for_machine(folder: str | Path, progress: Callable[[str], Progress]) -> list[Built]:
    """Build for ONNX Runtime, for OpenVINO where `auto` chooses it, and for TensorRT or else TensorRT-RTX.

    Args:
        folder: the bundle.
        progress: backend → what is told of its stages.

    Returns:
        One entry for each backend; one whose library is not installed, or that does not take the bundle, is among them.

    Raises:
        RedipruneError: no backend could be built for, or a graph is refused.
    """
    wanted = dict.fromkeys(["ort", *(choice.backend for choice in choose_backends(Bundle.open(folder)).values())])
    outcomes: dict[str, str] = {}
    for backend in dict.fromkeys(name.removesuffix("-bf16") for name in wanted):
        if backend in CPU_BACKENDS:
            engine = build_cpu(folder, backend, progress(backend))
            outcomes[backend] = f"{len(engine.stages)} stages, {engine.library} {engine.version}"
    gpu = _has_gpu()
    backend = "tensorrt" if gpu and find_spec("tensorrt") is not None else "tensorrt-rtx"
    outcomes[backend] = try_tensorrt(folder, backend, progress(backend))
    chosen = {stage: choice.backend for stage, choice in choose_backends(Bundle.open(folder)).items()}
    return [Built(name, outcome, _runs(name, outcome, chosen, gpu)) for name, outcome in outcomes.items()]


def try_tensorrt(folder: str | Path, backend: str, progress: Progress) -> str:
    """Build for TensorRT or TensorRT-RTX; what was built, or why nothing was."""
    if find_spec(backend.replace("-", "_")) is None:
        return f"not installed: pip install 'rediprune[{backend}]'"
    record = Bundle.open(folder).manifest.calibration
    if record is not None and (refusal := record.refusal(backend)) is not None:
        return refusal
    try:
        engines = build_tensorrt(folder, backend, progress=progress).engines
    except RedipruneError as error:  # the others serve; who needs this one asks for it by name, and it is an error
        return f"not built: {error}"
    return f"{len(engines.stages)} stages, {engines.library} {engines.version}, {', '.join(engines.compute_capability)}"


def _runs(backend: str, outcome: str, chosen: dict[str, str], gpu: bool) -> str:
    mine = [stage for stage, name in chosen.items() if name.removesuffix("-bf16") == backend]
    if mine:
        return ", ".join(mine)
    return "waits for a GPU" if backend.startswith("tensorrt") and not gpu and "stages" in outcome else "on request"


def _has_gpu() -> bool:
    try:
        compute_capability("tensorrt")
    except RedipruneError:
        return False
    return True
