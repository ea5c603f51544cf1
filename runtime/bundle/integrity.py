"""The bundle on disk: its manifest, and the checks made before anything in it is used.

<bundle>/
  manifest.json
  onnx/<stage>.onnx (+ .data), onnx/<stage>.<backend>.onnx
  onnx/weights/…            the checkpoint's own weight files, hard links, where the graphs refer to them
  engines/<backend>/…
  processor/

The rule: what is read is listed in the manifest with its hash, and nothing else is. So a graph's weights outside itself
must lie in a listed file, and a file in `processor/` that is not listed is refused. Elsewhere such files have no effect.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Collection
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from ..errors import RedipruneError
from .atomic_file import replacing
from .manifest import MANIFEST, SCHEMA_VERSION, EngineSpec, Manifest
from .paths import inside
from .seal import is_sealed, seal
from .siblings import old_of
from .verified_files import VerifiedFiles

# Its readers look for files by name (transformers' tokenizers for a dozen), so whatever lies there may be read.
_READ_WHOLE = "processor"


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
            RedipruneError: not a bundle, another schema version, an edited manifest, a missing or changed file, one in
                `processor/` that the manifest does not list, a graph with weights in a file that it does not list.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            if old_of(Path(os.path.realpath(folder))).is_dir():
                raise RedipruneError(
                    f"'{folder}' is not there: a run was ended while it put a new bundle in its place, and both lie beside it; "
                    "run the same command again, which brings it back"
                )
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
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            reason = _first_reason(error)
            raise RedipruneError(
                f"'{path}' cannot be read ({reason}); make the bundle again with: "
                f"rediprune export CHECKPOINT -o {folder} --force"
            ) from error
        if not is_sealed(raw):
            raise RedipruneError(
                f"'{path}' was changed after the bundle was made; make it again with: {manifest.rebuild_command(folder)}"
            )
        bundle = cls(folder, manifest)
        bundle.check_files(hashes=verify, remember=remember)
        return bundle

    def path(self, relative: str) -> Path:
        return self.folder / relative

    def check_complete(self) -> None:
        """Refuse a bundle without a language stage, where whole answers are asked for.

        Raises:
            RedipruneError: it was exported with --stages.
        """
        if "language" not in self.manifest.stages:
            raise RedipruneError(
                f"'{self.folder}' was exported without its language stage, and this needs one; export the checkpoint without "
                "--stages for it (the other stages are the same graphs)"
            )

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
        """Compare whatever was built of a stage for a backend with its hashes; raises as `check_engine`."""
        engine, own = self.manifest.engines[backend], EngineSpec.own_graph(backend, stage)
        built = [name for name in (EngineSpec.file(backend, stage), own, f"{own}.data") if name in engine.files]
        for name in built:
            self._check_built(backend, stage, name)
        if own in built:
            listed = {*self.manifest.stages[stage].files, *built}
            self._check_external_data(own, engine.files[own], listed, self.build_command(backend))
            self._verified.save()

    def _check_built(self, backend: str, stage: str, name: str, hashes: bool = True) -> None:
        engine = self.manifest.engines[backend]
        if engine.source_sha256.get(stage) != self.manifest.stages[stage].sha256:
            reason = "was built from another graph than the bundle's"
        elif name not in engine.files:
            reason = "is not listed in the manifest"
        else:
            reason = self._fault(name, engine.files[name], hashes, "is truncated or was replaced")
        self._verified.save()
        if reason is not None:
            raise RedipruneError(
                f"engine '{self.path(name)}' {reason}; build it again with: {self.build_command(backend)}"
            )

    def check_files(self, hashes: bool = True, remember: bool = True) -> None:
        """Compare the folder with the manifest.

        Args:
            hashes: compare every file with its hash, and look where the graphs have their weights.
            remember: trust what was found right before.

        Raises:
            RedipruneError: a file is missing, leads outside the bundle, or has other contents than when it was made; a file
                would be read that is not listed.
        """
        if not remember:
            self._verified = VerifiedFiles(self.folder, trusted=False)
        rebuild = self.manifest.rebuild_command(self.folder)
        self._refuse_unlisted(rebuild)
        try:
            for name, sha in self.expected_files().items():
                if (reason := self._fault(name, sha, hashes)) is not None:
                    raise RedipruneError(f"'{self.path(name)}' {reason}; make the bundle again with: {rebuild}")
            for stage in self.manifest.stages.values() if hashes else ():
                self._check_external_data(stage.file, stage.files[stage.file], stage.files, rebuild)
        finally:
            self._verified.save()

    def note_as_made(self) -> None:
        """Note that every file has its hash, where all were just taken: they are not hashed again until they change."""
        for name, sha in self.expected_files().items():
            self._verified.note(name, self.path(name).stat(), sha)
        self._verified.save()

    def data_file(self, graph: str, location: str, listed: Collection[str]) -> str:
        """The file in which a graph has weights.

        Args:
            graph: its name in the bundle.
            location: of the weights, as the graph has it: relative to its own folder.
            listed: the files that it may have them in.

        Returns:
            The file's name in the bundle.

        Raises:
            RedipruneError: it is none of these.
        """
        try:
            name = str(PurePosixPath(graph).parent / inside(location))
        except ValueError:
            name = ""
        if name not in listed:
            raise RedipruneError(
                f"'{self.path(graph)}' has weights in {location!r}, which the manifest does not list with the graph's files; "
                f"make the bundle again with: {self.manifest.rebuild_command(self.folder)}"
            )
        return name

    def _check_external_data(self, graph: str, sha: str, listed: Collection[str], rebuild: str) -> None:
        """Refuse a graph, whose own hash was found right, that has weights in files that are not listed."""
        locations = self._verified.external_data(sha)
        if locations is None:
            from .external_data import external_locations  # imports protobuf, for the first look at a graph only

            try:
                locations = external_locations(self.path(graph))
            except ValueError as error:
                raise RedipruneError(
                    f"'{self.path(graph)}' cannot be used: {error}; make it again with: {rebuild}"
                ) from error
            self._verified.note_external_data(sha, locations)
        for location in locations:
            self.data_file(graph, location, listed)

    def _refuse_unlisted(self, rebuild: str) -> None:
        """Refuse what lies in `processor/` and is not listed; hidden files, which nobody there reads, may stay."""
        listed = {name for name in self.manifest.files if name.startswith(f"{_READ_WHOLE}/")}
        listed |= {str(parent) for name in listed for parent in PurePosixPath(name).parents}
        for root, folders, files in os.walk(self.path(_READ_WHOLE)):
            place = Path(root).relative_to(self.folder).as_posix()
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in (*folders, *files):
                if not name.startswith(".") and f"{place}/{name}" not in listed:
                    raise RedipruneError(
                        f"'{Path(root, name)}' is not one of the bundle's files, and it might be read; remove it, or make the "
                        f"bundle again with: {rebuild}"
                    )

    def _fault(self, name: str, sha: str, hashes: bool, broken: str = "is damaged or was replaced") -> str | None:
        """What is wrong with a listed file, if something is; `broken` says that its hash is another."""
        path = self.path(name)
        if not path.is_file():
            return "is missing"
        if not os.path.realpath(path).startswith(self._inside):
            return "is a link that leads outside the bundle"
        try:
            if hashes and not self._is_as_made(path, name, sha):
                return broken
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None

    def _is_as_made(self, path: Path, name: str, sha: str) -> bool:
        """Whether a file has this hash. One found right is noted, and not hashed again until it changes."""
        stat = path.stat()
        if self._verified.knows(name, stat, sha):
            return True
        if file_sha256(path) != sha:
            self._verified.forget(name)
            return False
        self._verified.note(name, stat, sha)
        return True

    @cached_property
    def _inside(self) -> str:
        """How the real path of everything in the bundle begins."""
        return os.path.join(os.path.realpath(self.folder), "")

    @cached_property
    def _verified(self) -> VerifiedFiles:
        return VerifiedFiles(self.folder)

    def write_manifest(self) -> None:
        """Seal and write the manifest, whole or not at all."""
        document: dict[str, Any] = json.loads(self.manifest.model_dump_json())
        document["digest"] = seal(document)
        self.manifest = self.manifest.model_copy(update={"digest": document["digest"]})
        with replacing(self.path(MANIFEST)) as temporary:
            temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)
