"""Peers that read the checkpoint in a form of their own: made once, in the environment that they run in, and kept."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ....runtime.errors import RedipruneError

_RECIPE = "make their environment with `make bench-peers` and give --peers-python .venv-peers/bin/python"


@dataclass(frozen=True)
class PeerFormat:
    """The form of a checkpoint that a peer reads.

    Attributes:
        module: of this package; run with checkpoint, folder and precision it makes the form, and its `load` takes turns.
        precision: of the weights, as the module names it.
        decoder: pattern of the files that hold the decoder's weights.
        packages: what it needs installed.
        foreign: whether it needs an environment of its own.
        whole: False for one that is the decoder alone.
        prunes: `model_type` of checkpoints whose visual tokens it prunes by a method of its own.
    """

    module: str
    precision: str
    decoder: str
    packages: tuple[str, ...]
    foreign: bool = True
    whole: bool = True
    prunes: tuple[str, ...] = ()


def _genai(precision: str) -> PeerFormat:
    packages = ("openvino_genai", "optimum.intel")
    qwen = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    return PeerFormat("genai_peer", precision, "openvino_language_model.bin", packages, prunes=qwen)


def _llama(precision: str) -> PeerFormat:
    return PeerFormat("llama_peer", precision, "*.gguf", ("llama_cpp", "gguf", "safetensors"), whole=False)


PEER_FORMATS = {
    "exported": PeerFormat("exported_peer", "fp32", "language/*", ("onnxscript",), foreign=False),
    "openvino-genai": _genai("fp32"),
    "openvino-genai-int8": _genai("int8"),
    "openvino-genai-int4": _genai("int4"),
    "llama.cpp": _llama("f32"),
    "llama.cpp-q8_0": _llama("q8_0"),
    "llama.cpp-q4_0": _llama("q4_0"),
}


def check_environment(name: str, python: str) -> None:
    """Make sure that an interpreter has what a peer needs.

    Args:
        name: a key of `PEER_FORMATS`.
        python: the interpreter.

    Raises:
        RedipruneError: there is no such interpreter, or it lacks a package; the message says how to make one.
    """
    packages = PEER_FORMATS[name].packages
    look = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    try:
        done = subprocess.run([python, "-c", look, "rediprune", *packages], capture_output=True)
    except OSError as error:
        raise RedipruneError(f"there is no Python at '{python}' for the peer '{name}'; {_RECIPE}") from error
    if done.returncode:
        raise RedipruneError(f"the peer '{name}' needs {' and '.join(packages)}, not in '{python}'; {_RECIPE}")


def converted(name: str, checkpoint: Path, made: Path, python: str) -> Path:
    """Folder of a peer's form of the checkpoint, made unless it is there.

    Args:
        name: a key of `PEER_FORMATS`.
        checkpoint: the folder to convert.
        made: where this checkpoint's forms are kept.
        python: the peer's interpreter.

    Raises:
        RedipruneError: it could not be made; nothing is left of it.
    """
    folder, fresh = made / name, made / f".{name}.new"
    if folder.exists():
        return folder
    made.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)
    form = PEER_FORMATS[name]
    job = [python, "-m", f"{__package__}.{form.module}", str(checkpoint.resolve()), str(fresh), form.precision]
    try:
        done = subprocess.run(job, capture_output=True, text=True)
        if done.returncode:
            raise RedipruneError(f"its form of the checkpoint could not be made: {last_words(done)}")
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr of a process that failed."""
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return lines[-1].removeprefix(f"{RedipruneError.__module__}.RedipruneError: ")[:300]
