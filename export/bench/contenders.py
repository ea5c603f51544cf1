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
from .bench_settings import BenchSettings
from .peers.converted import PEER_FORMATS, check_environment, converted, last_words

# Peers that can be asked for, and what they are.
PEERS = {
    "eager": "transformers, eager, float32, unpruned",
    "eager-bf16": "transformers, eager, bfloat16, unpruned",
    "compiled": "transformers under torch.compile, float32, unpruned (needs a C++ compiler)",
    "released": "transformers, eager, float32, pruned by the release's selection loop",
    "exported": "transformers' own ONNX export on its runner, float32, unpruned",
    "openvino-genai": "openvino.genai's VLM pipeline, float32; unpruned, but of Qwen-VL pruned by its own method too",
    "openvino-genai-int8": "the same, weights in int8",
    "openvino-genai-int4": "the same, weights in int4",
    "llama.cpp": "llama.cpp, the decoder alone, float32",
    "llama.cpp-q8_0": "the same, weights in int8",
    "llama.cpp-q4_0": "the same, weights in int4",
}


@dataclass(frozen=True)
class _Eager:
    """transformers in eager PyTorch: the name in the tables, and what it runs with."""

    title: str
    dtype: str
    prunes: bool = False
    compiled: bool = False


_EAGER = {
    "eager": _Eager("eager fp32", "float32"),
    "eager-bf16": _Eager("eager bf16", "bfloat16"),
    "compiled": _Eager("torch.compile fp32", "float32", compiled=True),
    "released": _Eager("eager fp32, selection as released", "float32", prunes=True),
}


@dataclass
class Contender:
    """One that takes turns.

    Attributes:
        name: as the tables have it.
        module: a module with the function `load` that `turn.take_turn` calls.
        arguments: of `load`.
        keeps: keep ratios it is asked with; (1.0,) for one that cannot prune.
        disk: bytes on disk.
        decoder: bytes of weights that decoding a token reads; 0 where not known.
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
        """A bundle; all others are peers."""
        return self.module.endswith(".ours")


class TurnError(RedipruneError):
    """A turn that came to nothing."""


def take_turn(
    contender: Contender, requests: Sequence[dict[str, Any]], repeats: int, limit: float, warm: bool = True
) -> dict[str, Any]:
    """Run one turn in a process of its own (see `turn.take_turn`).

    Args:
        contender: whose turn it is.
        requests: what it is asked.
        repeats: how often it is asked each of them.
        limit: seconds that the turn may take.
        warm: whether each request is answered once before it counts.

    Returns:
        What `turn.take_turn` returns.

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


def our_contenders(bundles: Sequence[Bundle], settings: BenchSettings) -> list[Contender]:
    """One contender for each bundle on each backend."""
    found = []
    for bundle in bundles:
        disk = _size(bundle, bundle.expected_files())
        decoder = _size(bundle, bundle.manifest.stages["language"].files)
        precision = {name: stage.precision for name, stage in bundle.manifest.stages.items()}
        for backend in settings.backends:
            arguments = {"bundle": str(bundle.folder), "backend": backend, "threads": settings.cores}
            name, module = f"{bundle.folder.name} on {backend}", f"{__package__}.peers.ours"
            found.append(Contender(name, module, arguments, tuple(settings.keeps), disk, decoder, precision))
    return found


def _size(bundle: Bundle, files: Iterable[str]) -> int:
    return sum(bundle.path(file).stat().st_size for file in files)


def peer_contenders(settings: BenchSettings, checkpoint: Path, made: Path) -> tuple[list[Contender], dict[str, str]]:
    """The peers asked for, and why some of them cannot take part.

    Args:
        settings: `peers` and what they are asked with. The peer that prunes has the keep ratios below 1; decoders alone
            have all of them, and are given prompts as long as ours then are.
        checkpoint: the bundles' source.
        made: folder for this checkpoint in the forms that peers want, made there once.

    Raises:
        RedipruneError: a name that is not a peer's, or the interpreter lacks what a peer needs.
    """
    unknown = [name for name in settings.peers if name not in PEERS]
    if unknown:
        raise RedipruneError(f"peer '{unknown[0]}' is not known; choose among {', '.join(PEERS)}")
    for name in settings.peers:
        if name in PEER_FORMATS and PEER_FORMATS[name].foreign:
            check_environment(name, settings.peers_python)
    found: list[Contender] = []
    absent: dict[str, str] = {}
    for name in settings.peers:
        try:
            peer = (
                _eager_peer(name, settings, checkpoint)
                if name in _EAGER
                else _converted_peer(name, settings, checkpoint, made)
            )
        except RedipruneError as error:
            absent[name] = str(error)
        else:
            found += [peer] if peer.keeps else []
    return found, absent


def _eager_peer(name: str, settings: BenchSettings, checkpoint: Path) -> Contender:
    peer = _EAGER[name]
    if peer.compiled and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise RedipruneError("there is no C++ compiler")
    arguments = {
        "checkpoint": str(checkpoint),
        "dtype": peer.dtype,
        "threads": settings.cores,
        "compiled": peer.compiled,
    }
    keeps = tuple(keep for keep in settings.keeps if keep < 1) if peer.prunes else (1.0,)
    disk = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    return Contender(peer.title, f"{__package__}.peers.eager_peer", arguments, keeps, disk)


def _converted_peer(name: str, settings: BenchSettings, checkpoint: Path, made: Path) -> Contender:
    form = PEER_FORMATS[name]
    interpreter = settings.peers_python if form.foreign else sys.executable
    folder = converted(name, checkpoint, made, interpreter)
    prunes = json.loads((checkpoint / "config.json").read_text())["model_type"] in form.prunes
    disk, decoder = (sum(file.stat().st_size for file in folder.glob(files)) for files in ("**/*", form.decoder))
    return Contender(
        name,
        f"{__package__}.peers.{form.module}",
        {"folder": str(folder), "threads": settings.cores},
        (1.0,) if form.whole and not prunes else tuple(settings.keeps),
        disk,
        decoder,
        python=interpreter,
        whole=form.whole,
    )
