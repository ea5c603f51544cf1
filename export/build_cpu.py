"""Engines of backends that read the bundle's graphs as they are: ONNX Runtime and OpenVINO on the CPU.

Building loads every stage once and notes the library's version.
"""

from importlib.metadata import version
from pathlib import Path

from ..runtime.bundle import Bundle, EngineSpec
from ..runtime.session import open_language, open_stage, runs_on
from .bundle import Progress

LIBRARIES = {"ort": "onnxruntime", "openvino": "openvino"}  # backend → package


def build_cpu(folder: str | Path, backend: str, progress: Progress | None = None) -> EngineSpec:
    """Load every stage that the backend runs, and record them in the manifest.

    Raises:
        RedipruneError: the bundle cannot be used, the library is not installed or refuses a graph.
    """
    report = progress or (lambda stage, what, fraction: None)
    bundle = Bundle.open(folder)
    stages = {name: stage for name, stage in bundle.manifest.stages.items() if runs_on(backend, name) == backend}
    for name in stages:
        report(name, "loading", 0.0)
        if name == "language":
            open_language(backend, bundle, 0)
        else:
            open_stage(backend, bundle, name, 0)
        report(name, "loaded", 1.0)
    engine = EngineSpec(
        library=LIBRARIES[backend],
        version=version(LIBRARIES[backend]),
        stages=list(stages),
        precision={name: stage.precision for name, stage in stages.items()},
        source_sha256={name: stage.sha256 for name, stage in stages.items()},
    )
    bundle.manifest.engines[backend] = engine
    bundle.write_manifest()
    return engine
