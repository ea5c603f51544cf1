"""The bundle on disk: its manifest, and the checks made before anything in it is used.

<bundle>/
  manifest.json
  onnx/<stage>.onnx (+ .data), onnx/<stage>.<backend>.onnx
  onnx/weights/…            the checkpoint's own weight files, hard links, where the graphs refer to them
  engines/<backend>/…
  processor/
"""

import hashlib
import json
import os
import shlex
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from ..errors import RedipruneError
from .manifest import MANIFEST, SCHEMA_VERSION, EngineSpec, Manifest

_VERIFIED = ".verified.json"  # sizes and times of files whose hash was once found right


class Bundle:
    """A bundle folder whose manifest was read and found consistent."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True, remember: bool = True) -> "Bundle":
        """Read and check a bundle.

        Args:
            folder: the bundle.
            verify: compare every file with its hash. A file found right is not hashed again until its size or time
                changes.
            remember: trust what was found right before; False hashes everything again.

        Raises:
            RedipruneError: not a bundle, another schema version, an edited manifest, a missing or changed file.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            what = "is not a folder" if not folder.is_dir() else f"has no {MANIFEST}"
            raise RedipruneError(
                f"'{folder}' is not a bundle: it {what}; make one with: rediprune export CHECKPOINT -o {folder}"
            )
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw.get("schema_version")
            if version != SCHEMA_VERSION:
                raise RedipruneError(
                    f"'{path}' has schema version {version}, this tool reads {SCHEMA_VERSION}; "
                    f"make the bundle again with: rediprune export CHECKPOINT -o {folder} --force"
                )
            manifest = Manifest.model_validate(raw)
        except (ValueError, AttributeError) as error:
            reason = _first_reason(error)
            raise RedipruneError(
                f"'{path}' cannot be read ({reason}); make the bundle again with: "
                f"rediprune export CHECKPOINT -o {folder} --force"
            ) from error
        if not manifest.is_sealed:
            raise RedipruneError(
                f"'{path}' was changed after the bundle was made; make it again with: {manifest.rebuild_command(folder)}"
            )
        bundle = cls(folder, manifest)
        bundle.check_files(hashes=verify, remember=remember)
        return bundle

    def path(self, relative: str) -> Path:
        return self.folder / relative

    def expected_files(self) -> dict[str, str]:
        """Every file that every backend needs, with its sha256; engines are held to theirs by `check_engine`."""
        files = dict(self.manifest.files)
        for stage in self.manifest.stages.values():
            files.update(stage.files)
        return files

    def build_command(self, backend: str) -> str:
        """The command that makes this bundle's engines anew."""
        return shlex.join(["rediprune", "build", str(self.folder), "--backend", backend, "--force"])

    def check_engine(self, backend: str, stage: str, hashes: bool = True) -> EngineSpec:
        """The engines of a backend, after checking one stage's.

        Raises:
            RedipruneError: it was not built, was built from another graph, or its file is missing or has changed.
        """
        engine = self.manifest.engines.get(backend)
        if engine is None or stage not in engine.stages:
            raise RedipruneError(
                f"bundle '{self.folder}' has no {backend} engine of '{stage}'; build it with: {self.build_command(backend)}"
            )
        self._check_built(backend, stage, EngineSpec.file(backend, stage), hashes)
        return engine

    def graph(self, backend: str, stage: str) -> Path:
        """A stage's graph: in the backend's own operators where one was built, else the portable one.

        Raises:
            RedipruneError: the backend's was built from another graph, is missing or has changed.
        """
        name, engine = EngineSpec.own_graph(backend, stage), self.manifest.engines.get(backend)
        if engine is None or name not in engine.files:
            return self.path(self.manifest.stages[stage].file)
        self.check_built(backend, stage)
        return self.path(name)

    def check_built(self, backend: str, stage: str) -> None:
        """Hold whatever was built of a stage for a backend against its hashes; raises as `check_engine`."""
        own = EngineSpec.own_graph(backend, stage)
        for name in (EngineSpec.file(backend, stage), own, f"{own}.data"):
            if name in self.manifest.engines[backend].files:
                self._check_built(backend, stage, name)

    def _check_built(self, backend: str, stage: str, name: str, hashes: bool = True) -> None:
        engine, path, reason = self.manifest.engines[backend], self.path(name), None
        if engine.source_sha256.get(stage) != self.manifest.stages[stage].sha256:
            reason = "was built from another graph than the bundle's"
        elif not path.is_file():
            reason = "is missing"
        elif hashes and not self._is_as_made(path, name, engine.files.get(name, "")):
            reason = "is truncated or was replaced"
        if reason is not None:
            raise RedipruneError(f"engine '{path}' {reason}; build it again with: {self.build_command(backend)}")

    def check_files(self, hashes: bool = True, remember: bool = True) -> None:
        """Compare the folder with the manifest.

        Raises:
            RedipruneError: a file is missing, leads outside the bundle, or has other contents than when it was made.
        """
        if not remember:
            self._verified.clear()
        rebuild = self.manifest.rebuild_command(self.folder)
        for name, sha in self.expected_files().items():
            path = self.path(name)
            if not path.is_file():
                raise RedipruneError(f"bundle '{self.folder}' lacks '{name}'; make it again with: {rebuild}")
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise RedipruneError(f"'{path}' is a link that leads outside the bundle; make it again with: {rebuild}")
            if hashes and not self._is_as_made(path, name, sha):
                raise RedipruneError(f"'{path}' is damaged or was replaced; make the bundle again with: {rebuild}")

    def note_as_made(self) -> None:
        """Note that every file has its hash, where all were just taken: they are not hashed again until they change."""
        for name, sha in self.expected_files().items():
            stat = self.path(name).stat()
            self._verified[name] = [stat.st_size, stat.st_mtime_ns, sha]
        self._write_verified()

    def _is_as_made(self, path: Path, name: str, sha: str) -> bool:
        """Whether a file has this hash. One found right is noted, and not hashed again until its size or time changes."""
        stat = path.stat()
        stamp: list[object] = [stat.st_size, stat.st_mtime_ns, sha]
        if self._verified.get(name) == stamp:
            return True
        if file_sha256(path) != sha:
            return False
        self._verified[name] = stamp
        self._write_verified()
        return True

    def _write_verified(self) -> None:
        with suppress(OSError):  # a read-only bundle is hashed at every load
            self.path(_VERIFIED).write_text(json.dumps(self._verified), encoding="utf-8")

    @cached_property
    def _verified(self) -> dict[str, list[object]]:
        try:
            found = json.loads(self.path(_VERIFIED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_manifest(self) -> None:
        """Seal and write the manifest, whole or not at all."""
        self.manifest = self.manifest.sealed()
        temporary = self.path(MANIFEST + ".new")
        temporary.write_text(self.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path(MANIFEST))


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)
