"""Forms and engines for a GPU, tried where there is one: TensorRT's are built before they are timed."""

from pathlib import Path

from ...runtime.backend_choice import missing_for
from ..build.machine_engines import try_tensorrt
from ..exporter import Progress

ENGINES = ("tensorrt", "tensorrt-rtx")
BACKENDS = (*ENGINES, "ort-cuda")

# Halves, FP8 where the GPU multiplies it, and INT4 weights: (tower, decoder). INT8 with Q/DQ is among the CPU's recipes.
_RECIPES = (("fp16", "fp16"), ("fp8", "fp8"), ("fp16", "int4"))


def gpu_recipes() -> tuple[tuple[str, str], ...]:
    """Forms of tower and decoder that are made besides a CPU's; none where nothing here runs on a GPU."""
    return _RECIPES if any(missing_for(backend) is None for backend in BACKENDS) else ()


def build_engines(folder: Path, report: Progress) -> None:
    """Build a bundle for the backends of this machine's GPU; one that refuses a form has none, and its timing says so."""
    for backend in ENGINES:
        if missing_for(backend) is None:
            outcome = try_tensorrt(folder, backend, lambda stage, what, part: report("forms", f"{stage}: {what}", part))
            report("forms", f"{folder.name} on {backend}: {outcome}", 1.0)
