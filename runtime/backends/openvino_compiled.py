"""Compiled models that OpenVINO made before, kept in the user's cache: opening one takes a third of compiling it.

Each lies in a file named by everything that it depends on: the stage's content, the library, the processor and the
settings. A file that was changed since it was written is not used (it is known by its times and size, as
`runtime.bundle.verified_files` does), and the oldest leave when all together pass a bound. Kept are stages that were built
for OpenVINO (`rediprune build`), but for those in float32: their files are four times as large, and reading one takes as long
as compiling it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..bundle.atomic_file import replacing
from ..bundle.verified_files import cache_folder, stamp_of
from ..errors import RedipruneError
from ..machine import fingerprint

LIMIT = "REDIPRUNE_CACHE_LIMIT"  # environment variable: bytes of all files; 0 keeps none
_DEFAULT_LIMIT = 4 << 30
_NOT_KEPT = ("fp32", "fp16")
# How we change a decoder before it is compiled: another version of that is another model.
_OURS = hashlib.sha256(Path(__file__).with_name("openvino_decoder.py").read_bytes()).hexdigest()


def compiled_model(
    core: Any, bundle: Bundle, stage: str, settings: Mapping[str, Any], compile_model: Callable[[], Any]
) -> Any:
    """A stage's compiled model, from the cache where it is there, else made and kept.

    Args:
        core: OpenVINO's.
        bundle, stage: whose model it is.
        settings: that it is compiled with.
        compile_model: makes it.

    Raises:
        RedipruneError: the bound in the environment is no number.
    """
    limit, spec = _limit(), bundle.manifest.stages[stage]
    engine = bundle.manifest.engines.get("openvino")
    built = engine is not None and engine.source_sha256.get(stage) == spec.sha256
    if not limit or not built or spec.precision in _NOT_KEPT:
        return compile_model()
    depends_on = [
        spec.sha256,
        _OURS,
        version("openvino"),
        fingerprint(),
        sorted((name, str(value)) for name, value in settings.items()),
    ]
    name = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    path = cache_folder() / "openvino" / f"{name}.blob"
    found = _load(core, path, settings)
    if found is not None:
        return found
    made = compile_model()
    with suppress(OSError):  # no room, or no place to write: it is compiled again next time
        _keep(made, path)
        _trim(path.parent, limit)
    return made


def _limit() -> int:
    text = os.environ.get(LIMIT, str(_DEFAULT_LIMIT))
    try:
        limit = int(text)
    except ValueError:
        limit = -1
    if limit < 0:
        raise RedipruneError(f"{LIMIT} takes a number of bytes, 0 for no cache, not '{text}'")
    return limit


def _load(core: Any, path: Path, settings: Mapping[str, Any]) -> Any | None:
    """The model in a file; None where there is none, or it is not as it was written."""
    try:
        if json.loads(_note_of(path).read_text(encoding="utf-8")) != stamp_of(path.stat()):
            return None
        from openvino import Tensor

        # Mapped: weights that are used as they lie are not copied.
        model = core.import_model(Tensor(np.memmap(path, np.uint8, "r")), "CPU", dict(settings))
        with suppress(OSError):
            os.utime(_note_of(path))  # the one used last leaves last
        return model
    except (OSError, ValueError, RuntimeError):  # RuntimeError: OpenVINO's of a file that it cannot read
        return None


def _keep(model: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = BytesIO()  # the only stream that it takes
    model.export_model(held)
    with replacing(path) as temporary:
        temporary.write_bytes(held.getbuffer())
    with replacing(_note_of(path)) as temporary:
        temporary.write_text(json.dumps(stamp_of(path.stat())), encoding="utf-8")


def _trim(folder: Path, limit: int) -> None:
    """Remove the files used longest ago until all together are within the bound."""
    found = sorted(
        (_note_of(path).stat().st_mtime_ns if _note_of(path).exists() else 0, path.stat().st_size, path)
        for path in folder.glob("*.blob")
    )
    size = sum(bytes_ for _, bytes_, _ in found)
    for _, bytes_, path in found:
        if size <= limit:
            return
        path.unlink(missing_ok=True)
        _note_of(path).unlink(missing_ok=True)
        size -= bytes_


def _note_of(path: Path) -> Path:
    return path.with_suffix(".json")
