"""The manifest of a bundle: what each stage takes and gives, where its files lie, what it was made of."""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .auto_keep import AutoKeep
from .calibration_record import CalibrationSpec
from .paths import inside
from .plan_record import PlanRecord
from .strict_model import StrictModel

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "onnx/weights"

PRECISIONS = ("fp32", "fp16")


RelativePath = Annotated[str, AfterValidator(inside)]


class Source(StrictModel):
    """The checkpoint: where it came from, and the hashes that bind the bundle to it."""

    name: str
    revision: str | None = None
    config_sha256: str
    weights: dict[str, str]  # file → sha256


class TensorSpec(StrictModel):
    """One input or output: its dtype as numpy names it, and its dimensions, symbols where dynamic."""

    name: str
    dtype: str
    shape: list[int | str]


class StageSpec(StrictModel):
    """One graph: its file, every file it needs with its hash, and what goes in and out."""

    file: RelativePath
    files: dict[RelativePath, str]
    precision: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weight_bytes: int = 0  # of its weights in its precision; its files may hold other stages' too
    compared: bool = False  # with its eager module right after tracing

    @model_validator(mode="after")
    def _has_its_hash(self) -> Self:
        if self.file not in self.files:
            raise ValueError(f"graph '{self.file}' is not among the stage's files, so it has no hash")
        return self

    @property
    def sha256(self) -> str:
        """One hash over the graph and its weights: an engine is up to date while it stays the same."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


class ModalitySpec(StrictModel):
    """How an image or a video becomes visual tokens; P = leading + rows · columns."""

    stage: str
    output: str
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    leading: int = Field(default=0, ge=0)
    tiled: bool = False
    dynamic: bool = False  # each picture has a grid of its own; rows and columns are a usual one's
    rows_output: str | None = (
        None  # what `project` takes kept tokens from by their indices; None: the tokens themselves
    )
    mixed_output: str | None = None  # the output with the patches that tokens are mixed of behind the projector
    placeholder: int  # token id standing for it in the prompt

    @property
    def patches(self) -> int:
        return self.leading + self.rows * self.columns


class DecoderSpec(StrictModel):
    """Geometry of the language model."""

    layers: int
    kv_heads: int
    head_width: int
    width: int
    vocabulary: int
    max_positions: int


class EngineSpec(StrictModel):
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


class KeepDefaults(StrictModel):
    keep: float = 0.15
    alpha: float = 0.5
    tau: float = 0.0
    positions: Literal["compact", "original"] = "compact"


class Manifest(StrictModel):
    """What a bundle says of itself. `digest` is its seal (`seal.py`), so that an edited manifest is noticed."""

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
    plan: PlanRecord | None = None
    auto_keep: AutoKeep | None = None
    files: dict[RelativePath, str] = {}  # processor files and others that belong to no stage
    digest: str = ""

    @model_validator(mode="after")
    def _files_have_one_hash(self) -> Self:
        if self.newline is not None and self.newline not in self.files:
            raise ValueError(f"'{self.newline}' is not among the bundle's files, so it has no hash")
        hashes: dict[str, str] = {}
        for files in (self.files, *(stage.files for stage in self.stages.values())):
            for name, sha in files.items():
                if hashes.setdefault(name, sha) != sha:
                    raise ValueError(f"'{name}' has two hashes")
        return self

    @model_validator(mode="after")
    def _decoder_is_that_of_its_graph(self) -> Self:
        """The KV cache is made by `decoder`, and read by the graph: they must be of one size."""
        language = self.stages.get("language")
        caches = [port for port in language.inputs if port.name.startswith("past.")] if language is not None else []
        named = {
            f"past.{kind}.{layer}" for kind in ("key", "value") for layer in range(min(self.decoder.layers, 10_000))
        }
        sizes = {(port.shape[1], port.shape[3]) for port in caches if len(port.shape) == 4}
        expected = {(self.decoder.kv_heads, self.decoder.head_width)}
        if caches and ({port.name for port in caches} != named or sizes != expected):
            raise ValueError("the sizes of 'decoder' are not those of the language stage's cache")
        return self

    @property
    def float_precision(self) -> str:
        """Precision of what is not quantised: the bundle's own, or that of the one it was calibrated from."""
        return self.precision if self.calibration is None else self.calibration.source_precision

    @property
    def takes_positions(self) -> bool:
        """Whether a token's position is an input of the language stage; in bundles of earlier versions it is its slot."""
        language = self.stages.get("language")
        return language is not None and any(port.name == "position_ids" for port in language.inputs)

    @property
    def selects_clips(self) -> bool:
        """Whether one budget can be spent over all frames; bundles of earlier versions have no graph for it."""
        return "select_clip" in self.stages

    @property
    def position_axes(self) -> int:
        """Positions of a token: 1, or 3 where the rotary embedding is multimodal."""
        language = self.stages.get("language")  # a bundle without one is of a family with one axis
        shapes = [port.shape for port in (language.inputs if language else ()) if port.name == "position_ids"]
        return 3 if shapes and len(shapes[0]) == 3 else 1

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
        if "language" not in self.stages:
            return shlex.join([*command, "--stages", ",".join(self.stages)])
        return shlex.join([*command, "--copy"] if not self.refers else command)
