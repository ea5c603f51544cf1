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
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import RedipruneError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "onnx/weights"
_VERIFIED = ".verified.json"  # sizes and times of files whose hash was once found right

PRECISIONS = ("fp32", "fp16")


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"path '{path}' leads outside the bundle")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Source(_Strict):
    """The checkpoint: where it came from, and the hashes that bind the bundle to it."""

    name: str
    revision: str | None = None
    config_sha256: str
    weights: dict[str, str]  # file → sha256


class TensorSpec(_Strict):
    """One input or output: its dtype as numpy names it, and its dimensions, symbols where dynamic."""

    name: str
    dtype: str
    shape: list[int | str]


class StageSpec(_Strict):
    """One graph: its file, every file it needs with its hash, and what goes in and out."""

    file: RelativePath
    files: dict[RelativePath, str]
    precision: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weight_bytes: int = 0  # of its weights in its precision; its files may hold other stages' too
    compared: bool = False  # with its eager module right after tracing

    @property
    def sha256(self) -> str:
        """One hash over the graph and its weights: an engine is up to date while it stays the same."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


class ModalitySpec(_Strict):
    """How an image or a video becomes visual tokens; P = leading + rows · columns."""

    stage: str
    output: str
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    leading: int = Field(default=0, ge=0)
    tiled: bool = False
    placeholder: int  # token id standing for it in the prompt

    @property
    def patches(self) -> int:
        return self.leading + self.rows * self.columns


class DecoderSpec(_Strict):
    """Geometry of the language model."""

    layers: int
    kv_heads: int
    head_width: int
    width: int
    vocabulary: int
    max_positions: int


class EngineSpec(_Strict):
    """Engines of one backend: the library that built them, what they were built for, and their files.

    A stage's profile is, for each input, its least, usual and greatest shape; for `num_keep`, a shape input, its value.
    """

    library: str
    version: str
    stages: list[str]
    precision: dict[str, str] = {}
    compute_capability: list[str] = []  # "sm_89"
    profile: dict[str, dict[str, list[list[int]]]] = {}
    source_sha256: dict[str, str] = {}  # stage → `StageSpec.sha256` of what it was built from
    files: dict[RelativePath, str] = {}

    @staticmethod
    def file(backend: str, stage: str) -> str:
        return f"engines/{backend}/{stage}.engine"

    @staticmethod
    def own_graph(backend: str, stage: str) -> str:
        """A graph in a backend's own operators; it lies beside the portable one, as the two share their weights."""
        return f"onnx/{stage}.{backend}.onnx"


class Limit(_Strict):
    """Where a calibrated bundle cannot be used: a backend, or its GPUs below a compute capability ("sm_89")."""

    backend: str
    below: str | None = None
    says: str


class Fidelity(_Strict):
    """How near a quantised stage comes to the source's on samples held out: the worst of them, over all outputs."""

    cosine: float
    relative_error: float  # ‖difference‖ / ‖source's output‖


class Sensitivity(_Strict):
    """What the layers that read one value cost where they alone are quantised, on samples held out.

    Attributes:
        stage, unit: where they are, and their name.
        layers, weights: the layers, and how many numbers they multiply with.
        error: of the stage's outputs, ‖difference‖ / ‖source's output‖, the worst.
        kept: overlap (Jaccard) of the kept sets with the source's, the mean; None where the stage has no say in them.
        logits: relative error of the logits, the mean over samples.
        tokens: share of next tokens that stay the same.
        quantised: what was chosen for them; where not, they stay in the source's precision.
    """

    stage: str
    unit: str
    layers: list[str]
    weights: int
    error: float
    kept: float | None = None
    logits: float
    tokens: float
    quantised: bool = True


class CalibrationSpec(_Strict):
    """How a calibrated bundle was made of another one.

    Attributes:
        source, source_digest, source_precision: that bundle's folder, manifest digest and precision.
        options: what `rediprune calibrate` was told, so that the same can be made again.
        recipe: stage → form; a stage not named is the source's own.
        data: name, content hash (sha256) and number of samples; {} where no form needed any.
        ranges: how activation ranges were taken.
        skipped: stage → linear layers left as they were.
        fidelity: stage → how near it comes to the source's; None where this machine cannot run the form.
        limits: what cannot take the bundle.
        tools: library → version.
        budget: how much might be lost, as `rediprune calibrate` was told: "error=0.02", "accuracy=1"; "" where it was not.
        measured: what is lost: by stage the relative error, or by keep ratio the points of accuracy.
        sensitivity: the ground of the choice of what stays in higher precision; empty where nothing had to.
        floors: stage → the largest relative error that `validate` lets pass, measured by `rediprune report`; None before.
    """

    source: str
    source_digest: str
    source_precision: str
    options: list[str]
    recipe: dict[str, str]
    data: dict[str, str | int] = {}
    ranges: str = ""
    skipped: dict[str, list[str]] = {}
    fidelity: dict[str, Fidelity | None] = {}
    limits: list[Limit] = []
    tools: dict[str, str] = {}
    budget: str = ""
    measured: dict[str, float] = {}
    sensitivity: list[Sensitivity] = []
    floors: dict[str, float] | None = None

    def refusal(self, backend: str, targets: Sequence[str] = ()) -> str | None:
        """Why a backend, or one of the GPUs it would build for, cannot take the bundle."""
        for limit in self.limits:
            low = limit.below is not None and any(_capability(t) < _capability(limit.below) for t in targets)
            if limit.backend == backend and (limit.below is None or low):
                return limit.says
        return None


def _capability(target: str) -> int:
    return int(target.removeprefix("sm_"))


class KeepDefaults(_Strict):
    keep: float = 0.15
    alpha: float = 0.5
    tau: float = 0.0


class Manifest(_Strict):
    """What a bundle says of itself. `digest` covers everything else, so that an edited manifest is noticed."""

    schema_version: Literal[1] = SCHEMA_VERSION
    tool_version: str
    source: Source
    family: str
    family_name: str
    tower: str
    language_model: str
    precision: str
    image_size: int
    patch_size: int
    channels: int
    decoder: DecoderSpec
    modalities: dict[str, ModalitySpec]  # "image", "video"
    pinpoints: list[tuple[int, int]] = []  # anyres resolutions (height, width), where images are tiled
    newline: RelativePath | None = None  # the newline embedding [D], where images are tiled
    defaults: KeepDefaults = KeepDefaults()
    stages: dict[str, StageSpec]
    engines: dict[str, EngineSpec] = {}
    calibration: CalibrationSpec | None = None
    files: dict[RelativePath, str] = {}  # processor files and others that belong to no stage
    digest: str = ""

    @property
    def float_precision(self) -> str:
        """Precision of what is not quantised: the bundle's own, or that of the one it was calibrated from."""
        return self.precision if self.calibration is None else self.calibration.source_precision

    def sealed(self) -> "Manifest":
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        # Without defaults, so that a field added later does not break the seal of bundles made before.
        body = self.model_dump(mode="json", exclude={"digest"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @property
    def is_sealed(self) -> bool:
        return self.digest == self._digest()

    @property
    def refers(self) -> bool:
        """Whether graphs refer to the checkpoint's own weight files rather than to copies."""
        return any(name.startswith(f"{WEIGHTS}/") for stage in self.stages.values() for name in stage.files)

    def rebuild_command(self, folder: Path) -> str:
        """The command that makes this bundle anew."""
        if self.calibration is not None:
            made = self.calibration
            return shlex.join(["rediprune", "calibrate", made.source, "-o", str(folder), *made.options, "--force"])
        command = ["rediprune", "export", self.source.name, "-o", str(folder), "--force"]
        command += ["--revision", self.source.revision] if self.source.revision else []
        command += ["--precision", self.precision] if self.precision != "fp32" else []
        return shlex.join([*command, "--copy"] if not self.refers else command)


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
