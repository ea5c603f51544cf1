"""Who takes part, and the process that each turn is."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from .peers.converted import FORMS, check_environment, converted, last_words

# Peers that can be asked for, and what they are.
PEERS = {
    "eager": "transformers, eager, float32, unpruned",
    "eager-bf16": "transformers, eager, bfloat16, unpruned",
    "compiled": "transformers under torch.compile, float32, unpruned (needs a C++ compiler)",
    "released": "transformers, eager, float32, pruned by the release's selection loop",
    "exported": "transformers' own ONNX export on its runner, float32, unpruned",
    "openvino-genai": "openvino.genai's VLM pipeline, float32, unpruned",
    "openvino-genai-int8": "the same, weights in int8",
    "openvino-genai-int4": "the same, weights in int4",
    "llama.cpp": "llama.cpp, the decoder alone, float32",
    "llama.cpp-q8_0": "the same, weights in int8",
    "llama.cpp-q4_0": "the same, weights in int4",
}
DEFAULT_PEERS = ("eager", "eager-bf16", "released")


@dataclass
class Contender:
    """One that takes turns.

    Attributes:
        name: as the tables have it.
        module: with `load`, as `turn` wants it.
        arguments: of `load`.
        keeps: keep ratios it is asked with; (1.0,) for one that cannot prune.
        disk: bytes on disk. decoder: bytes of weights that decoding a token reads, 0 where not known.
        precision: of each stage; empty of one that has no stages.
        python: interpreter that it runs in.
        whole: False for one that is the decoder alone.
    """

    name: str
    module: str
    arguments: dict[str, Any]
    keeps: Sequence[float]
    disk: int
    decoder: int = 0
    precision: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    whole: bool = True

    @property
    def ours(self) -> bool:
        return self.module.endswith(".ours")


class TurnError(RedipruneError):
    """A turn that came to nothing."""


def take_turn(
    contender: Contender, requests: Sequence[dict[str, Any]], repeats: int, limit: float, warm: bool = True
) -> dict[str, Any]:
    """Run one turn in a process of its own (see `turn`).

    Raises:
        TurnError: the process failed, or took longer than `limit` seconds.
    """
    job = {
        "arguments": contender.arguments,
        "requests": list(requests),
        "repeats": repeats,
        "warm": warm,
        "spawned": time.monotonic(),
    }
    try:
        done = subprocess.run(
            [contender.python, "-m", f"{__package__}.turn", contender.module],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise TurnError(f"took longer than {limit:.0f} s") from error
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        raise TurnError(last_words(done))
    return json.loads(lines[-1])


def our_contenders(
    bundles: Sequence[Bundle], backends: Sequence[str], keeps: Sequence[float], threads: int
) -> list[Contender]:
    """Every bundle on every backend."""
    found = []
    for bundle in bundles:
        disk = _size(bundle, bundle.expected_files())
        decoder = _size(bundle, bundle.manifest.stages["language"].files)
        precision = {name: stage.precision for name, stage in bundle.manifest.stages.items()}
        for backend in backends:
            arguments = {"bundle": str(bundle.folder), "backend": backend, "threads": threads}
            name = f"{bundle.folder.name} on {backend}"
            found.append(
                Contender(name, f"{__package__}.peers.ours", arguments, tuple(keeps), disk, decoder, precision)
            )
    return found


def _size(bundle: Bundle, files: Iterable[str]) -> int:
    return sum(bundle.path(file).stat().st_size for file in files)


def peer_contenders(
    names: Sequence[str],
    checkpoint: Path,
    keeps: Sequence[float],
    threads: int,
    made: Path = Path("engines/peers"),
    python: str = sys.executable,
) -> tuple[list[Contender], dict[str, str]]:
    """The peers asked for, and why some of them cannot take part.

    Args:
        names: keys of `PEERS`.
        checkpoint: the bundles' source.
        keeps: for the one peer that prunes, and for decoders alone, which are given prompts as long as ours.
        threads: of every contender.
        made: folder for this checkpoint in the forms that peers want, made there once.
        python: interpreter of the peers that have an environment of their own.

    Raises:
        RedipruneError: a name that is not a peer's, or the interpreter lacks what a peer needs.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise RedipruneError(f"peer '{unknown[0]}' is not known; choose among {', '.join(PEERS)}")
    for name in names:
        if name in FORMS and FORMS[name].foreign:
            check_environment(name, python)
    disk = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    pruned = tuple(keep for keep in keeps if keep < 1)
    found: list[Contender] = []
    absent: dict[str, str] = {}

    def eager(name: str, dtype: str, keeps: Sequence[float] = (1.0,), compiled: bool = False) -> None:
        arguments = {"checkpoint": str(checkpoint), "dtype": dtype, "threads": threads, "compiled": compiled}
        found.append(Contender(name, f"{__package__}.peers.eager_peer", arguments, keeps, disk))

    def other(name: str) -> None:
        form = FORMS[name]
        interpreter = python if form.foreign else sys.executable
        try:
            folder = converted(name, checkpoint, made, interpreter)
        except RedipruneError as error:
            absent[name] = str(error)
            return
        ratios = (1.0,) if form.whole else tuple(keeps)
        disk, decoder = (sum(file.stat().st_size for file in folder.glob(files)) for files in ("**/*", form.decoder))
        arguments = {"folder": str(folder), "threads": threads}
        module = f"{__package__}.peers.{form.module}"
        found.append(Contender(name, module, arguments, ratios, disk, decoder, python=interpreter, whole=form.whole))

    for name in names:
        if name == "compiled" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            absent[name] = "there is no C++ compiler"
        elif name == "eager":
            eager("eager fp32", "float32")
        elif name == "eager-bf16":
            eager("eager bf16", "bfloat16")
        elif name == "compiled":
            eager("torch.compile fp32", "float32", compiled=True)
        elif name == "released" and pruned:
            eager("eager fp32, selection as released", "float32", pruned)
        elif name in FORMS:
            other(name)
    return found, absent
