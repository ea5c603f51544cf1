"""ONNX Runtime "engines": the graphs as they are, but for the decoder, which is rewritten in ONNX Runtime's own operators.

Building loads each once and notes the library's version.
"""

from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle import Bundle, EngineSpec, file_sha256
from ..runtime.errors import RedipruneError
from ..runtime.ort import OrtStage
from ..runtime.session import open_language
from ..runtime.staging import making
from .bundle import Progress
from .fuse_decoder import fuse_decoder


def build_ort(folder: str | Path, progress: Progress | None = None) -> EngineSpec:
    """Rewrite the decoder, load every stage in ONNX Runtime and record it in the manifest.

    Raises:
        RedipruneError: the bundle cannot be used, or ONNX Runtime refuses a graph.
    """
    report = progress or (lambda stage, what, fraction: None)
    bundle = Bundle.open(folder)
    made = bundle.manifest.calibration
    if made is not None and (refusal := made.refusal("ort")) is not None:
        raise RedipruneError(refusal)
    stages = bundle.manifest.stages
    with making(bundle.folder):
        if bundle.manifest.engines.pop("ort", None) is not None:
            bundle.write_manifest()  # its files are about to change
        report("language", "fusing", 0.0)
        engine = EngineSpec(
            library="onnxruntime",
            version=version("onnxruntime"),
            stages=list(stages),
            precision={name: stage.precision for name, stage in stages.items()},
            source_sha256={name: stage.sha256 for name, stage in stages.items()},
            files=_fuse_language(bundle),
        )
        bundle.manifest.engines["ort"] = engine
        for name in stages:
            report(name, "loading", 0.5)
            if name == "language":
                open_language("ort", bundle, 0)
            else:
                OrtStage(bundle, name, 0)
            report(name, "loaded", 1.0)
        bundle.write_manifest()
    return engine


def _fuse_language(bundle: Bundle) -> dict[str, str]:
    """Write the decoder's own graph beside the portable one, whose weights it shares; its file and hash."""
    spec, name = bundle.manifest.stages["language"], EngineSpec.own_graph("ort", "language")
    model = ir.load(bundle.path(spec.file))
    if not fuse_decoder(model, bundle.manifest.decoder):
        return {}
    ir.save(model, bundle.path(name))
    return {name: file_sha256(bundle.path(name))}
