"""Engines of the backends on the CPU, ONNX Runtime and OpenVINO: they read the bundle's graphs as they are.

Only the vision towers and the decoder are rewritten, in ONNX Runtime's own operators. Building loads every stage once and
notes the library's version.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from ...runtime.backends.session import open_session, runs_on
from ...runtime.bundle import Bundle, EngineSpec, file_sha256
from ...runtime.bundle.lock import changing
from ...runtime.errors import RedipruneError
from ..exporter import Progress
from .fuse_decoder import fuse_decoder
from .fuse_norms import fuse_norms
from .fuse_tower import fuse_tower
from .last_token import only_last_token
from .libraries import library_of
from .nbits_layout import to_nbits

BACKENDS = ("ort", "openvino")


def build_cpu(folder: str | Path, backend: str, progress: Progress | None = None) -> EngineSpec:
    """Load every stage that the backend runs, and record them in the manifest.

    Raises:
        RedipruneError: the bundle cannot be used, the library is not installed or refuses a graph.
    """
    report = progress or (lambda stage, what, fraction: None)
    with changing(folder) as bundle:
        made = bundle.manifest.calibration
        refusals = {} if made is None else {name: made.refusal(backend, stage=name) for name in bundle.manifest.stages}
        stages = {
            name: stage
            for name, stage in bundle.manifest.stages.items()
            if runs_on(backend, name) == backend and refusals.get(name) is None
        }
        towers = {modality.stage for modality in bundle.manifest.modalities.values()}
        if not towers & set(stages) and "language" not in stages:
            raise RedipruneError(next(filter(None, refusals.values())))
        if bundle.manifest.engines.pop(backend, None) is not None:
            bundle.write_manifest()  # its files are about to change
        files: dict[str, str] = {}
        for name in stages if backend == "ort" else ():
            report(name, "rewriting", 0.0)
            files |= _rewrite(bundle, name)
        library, version = library_of(backend)
        engine = EngineSpec(
            library=library,
            version=version,
            stages=list(stages),
            precision={name: stage.precision for name, stage in stages.items()},
            source_sha256={name: stage.sha256 for name, stage in stages.items()},
            files=files,
        )
        bundle.manifest.engines[backend] = engine
        for name in stages:
            report(name, "loading", 0.5)
            open_session(backend, bundle, name, 0)
            report(name, "loaded", 1.0)
        bundle.write_manifest()
    return engine


def _rewrite(bundle: Bundle, stage: str) -> dict[str, str]:
    """Write a stage in ONNX Runtime's operators beside the portable graph, whose weights it shares; files and hashes.

    int4 weights are laid out anew, and then lie in a file of their own. Both files are written beside their places and
    renamed: whoever runs the ones that were there keeps them.
    """
    towers = {modality.stage for modality in bundle.manifest.modalities.values()}
    if stage not in towers and stage != "language":
        return {}
    spec, name = bundle.manifest.stages[stage], EngineSpec.own_graph("ort", stage)
    model = ir.load(bundle.path(spec.file))
    fused = fuse_tower(model) if stage in towers else fuse_decoder(model, bundle.manifest.decoder)
    norms = fuse_norms(model)
    shortened = 0 if stage in towers else only_last_token(model)
    repacked = to_nbits(model)
    if not (fused or norms or shortened or repacked):
        return {}
    place = bundle.path(name).parent
    with TemporaryDirectory(prefix=".", dir=place) as scratch:
        graph = Path(scratch, Path(name).name)
        ir.save(model, graph, external_data=f"{graph.name}.data" if repacked else None)
        written = sorted(Path(scratch).iterdir(), reverse=True)  # the graph last, once its weights are there
        for file in written:
            file.replace(place / file.name)
    return {f"onnx/{file.name}": file_sha256(place / file.name) for file in reversed(written)}
