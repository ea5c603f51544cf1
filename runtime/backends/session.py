"""One interface for every backend: a stage is arrays in, arrays out; the language stage keeps its KV cache.

Arrays lie on the host or on the GPU. A backend takes either: one on the CPU downloads what it gets from the GPU, one on
the GPU uploads what it gets from the host and leaves its outputs there, in memory of their own.

A backend is a module of this package with two functions, `open_stage` and `open_language`, registered in `BACKENDS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from ..bundle import Bundle, StageSpec
from ..errors import RedipruneError
from .arrays import Array
from .device import DeviceArray


@dataclass(frozen=True)
class Backend:
    """How a backend is opened.

    Attributes:
        module: of this package; imported when the backend is asked for, so that its libraries stay optional.
        options: what its `open_stage` and `open_language` take besides.
        instead: stages whose graph it cannot read, and the backend that runs them.
    """

    module: str
    options: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)


_CLIP = {"select_clip": "ort"}  # its loops end where they like: how many tokens come out is not known beforehand
_NO_FUNCTIONS = {"select": "ort", **_CLIP}  # OpenVINO knows no functions of a model's own
BACKENDS = {
    "ort": Backend(".ort"),
    "ort-cuda": Backend(".ort_cuda", instead=_CLIP),
    "tensorrt": Backend(".tensorrt", {"backend": "tensorrt"}, _CLIP),
    "tensorrt-rtx": Backend(".tensorrt", {"backend": "tensorrt-rtx"}, _CLIP),
    "openvino": Backend(".openvino", {"precision": "f32"}, _NO_FUNCTIONS),
    "openvino-bf16": Backend(".openvino", {"precision": "bf16"}, _NO_FUNCTIONS),
    "kernel": Backend(".cuda_select"),
    "eager": Backend(".eager_torch"),
}


class StageSession(Protocol):
    """A loaded stage. Several threads may run it at once: what a library does not allow, its session guards."""

    batch: int  # frames per run that are fastest here

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs by name, computed when it returns; inputs are by the manifest's names and dtypes."""
        ...


class Decoding(Protocol):
    """One request's KV cache, filled from position 0 by one thread; others fill theirs meanwhile."""

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        """Append embeds [1,S,D] to the cache; logits [V] float32 of the last of them.

        Args:
            embeds: of the next S slots.
            positions: [A,S] int64 for the rotary embedding (see `runtime.positions`); None: each token's slot.
            deepstack: [T,S,D], added behind the first T layers where the family has it; None: nothing.

        Raises:
            RedipruneError: the cache is full, or the stage takes no positions.
        """
        ...


class LanguageSession(Protocol):
    """The loaded language stage. Several threads may start and fill caches at once."""

    def start(self, length: int) -> Decoding:
        """An empty cache with room for `length` positions."""
        ...


def runs_on(backend: str, stage: str) -> str:
    """The backend that runs a stage where this one was asked for: another where it cannot read the stage's graph."""
    return BACKENDS[backend].instead.get(stage, backend) if backend in BACKENDS else backend


def open_stage(backend: str, bundle: Bundle, stage: str, threads: int) -> StageSession:
    """Load a stage other than `language` on a backend; threads 0 leaves their number to the backend."""
    module, options = _load(runs_on(backend, stage))
    return module.open_stage(bundle, stage, threads, **options)


def open_language(backend: str, bundle: Bundle, threads: int) -> LanguageSession:
    """Load the language stage on a backend."""
    module, options = _load(backend)
    return module.open_language(bundle, threads, **options)


def open_session(backend: str, bundle: Bundle, stage: str, threads: int) -> Any:
    """Load a stage on a backend: a LanguageSession of `language`, a StageSession of any other."""
    if stage == "language":
        return open_language(backend, bundle, threads)
    return open_stage(backend, bundle, stage, threads)


def _load(backend: str) -> tuple[Any, Mapping[str, str]]:
    if backend not in BACKENDS:
        raise RedipruneError(f"backend '{backend}' is not known; choose one of: {', '.join(BACKENDS)}")
    entry = BACKENDS[backend]
    try:
        return import_module(entry.module, __package__), entry.options
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        extra = "cuda" if backend == "ort-cuda" else "cpu"
        raise RedipruneError(
            f"backend '{backend}' needs ONNX Runtime; install it with: pip install 'rediprune[{extra}]'"
        ) from error


def cast_inputs(spec: StageSpec, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """The stage's inputs on the host, in its own dtypes and contiguous, after checking their shapes.

    Raises:
        RedipruneError: an input is missing or has a fixed dimension of another size.
    """
    return {name: np.asarray(array) for name, array in fit_inputs(spec, inputs).items()}


def fit_inputs(spec: StageSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """As `cast_inputs`, but an array on the GPU stays there where it has the right dtype."""
    feed = {}
    for port in spec.inputs:
        if port.name not in inputs:
            raise RedipruneError(
                f"stage input '{port.name}' is missing; the stage takes {[p.name for p in spec.inputs]}"
            )
        array = inputs[port.name]
        if not isinstance(array, DeviceArray) or array.dtype != port.dtype:
            array = np.asarray(array, dtype=port.dtype, order="C")
        fixed = len(array.shape) == len(port.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(port.shape, array.shape, strict=True)
        )
        if not fixed:
            raise RedipruneError(
                f"stage input '{port.name}' has shape {list(array.shape)}, the stage takes {port.shape}"
            )
        feed[port.name] = array
    return feed


def check_cache_room(length: int, needed: int) -> None:
    """See that a KV cache of `length` positions holds those that are needed.

    Raises:
        RedipruneError: it does not.
    """
    if needed > length:
        raise RedipruneError(f"the KV cache has room for {length} positions, {needed} are needed")


def output_shapes(spec: StageSpec, feed: Mapping[str, Array]) -> dict[str, list[int]]:
    """What a stage will give for these inputs. Kept tokens are asked for by number, and no more than there are patches."""
    sizes = {}
    for port in spec.inputs:
        sizes |= {d: n for d, n in zip(port.shape, feed[port.name].shape, strict=True) if isinstance(d, str)}
    if "num_keep" in feed:
        sizes["kept"] = min(int(np.asarray(feed["num_keep"])), sizes["patches"])
    return {port.name: [sizes[d] if isinstance(d, str) else d for d in port.shape] for port in spec.outputs}
