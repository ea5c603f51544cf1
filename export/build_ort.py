"""ONNX Runtime "engines": the graphs as they are. Building loads and runs each once and notes the library's version."""

from importlib.metadata import version
from pathlib import Path

from ..runtime.bundle import Bundle, EngineSpec
from ..runtime.errors import RedipruneError
from ..runtime.ort import OrtStage
from ..runtime.session import open_language
from .bundle import Progress


def build_ort(folder: str | Path, progress: Progress | None = None) -> EngineSpec:
    """Load every stage in ONNX Runtime and record it in the manifest.

    Raises:
        RedipruneError: the bundle cannot be used, or ONNX Runtime refuses a graph.
    """
    report = progress or (lambda stage, what, fraction: None)
    bundle = Bundle.open(folder)
    made = bundle.manifest.calibration
    if made is not None and (refusal := made.refusal("ort")) is not None:
        raise RedipruneError(refusal)
    stages = bundle.manifest.stages
    for name in stages:
        report(name, "loading", 0.0)
        if name == "language":
            open_language("ort", bundle, 0)
        else:
            OrtStage(bundle, name, 0)
        report(name, "loaded", 1.0)
    engine = EngineSpec(
        library="onnxruntime",
        version=version("onnxruntime"),
        stages=list(stages),
        precision={name: stage.precision for name, stage in stages.items()},
        source_sha256={name: stage.sha256 for name, stage in stages.items()},
    )
    bundle.manifest.engines["ort"] = engine
    bundle.write_manifest()
    return engine
