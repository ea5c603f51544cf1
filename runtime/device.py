"""Memory, a stream and CUDA graphs of the first GPU, through cuda-bindings. No torch.

Everything is enqueued on the stream; nothing waits but `download` and `synchronize`.
"""

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from .errors import RedipruneError


class Stream:
    """A stream of the first GPU."""

    def __init__(self, backend: str):
        try:
            self.cuda = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise RedipruneError(
                f"backend '{backend}' needs cuda-bindings; install it with: pip install 'rediprune[{backend}]', or use "
                "--backend ort"
            ) from error
        self.call("cudaSetDevice", 0)
        flags = self.cuda.cudaStreamNonBlocking
        self.handle = int(self.call("cudaStreamCreateWithFlags", flags))
        weakref.finalize(self, self.cuda.cudaStreamDestroy, self.handle)

    def allocate(self, size: int) -> "Memory":
        """`size` bytes of device memory, freed with the object."""
        return Memory(self, size)

    def upload(self, array: np.ndarray, memory: "Memory") -> None:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", memory.address, array.ctypes.data, array.nbytes, kind, self.handle)

    def download(self, memory: "Memory", array: np.ndarray) -> np.ndarray:
        """Fill `array` once everything before is done."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, memory.address, array.nbytes, kind, self.handle)
        self.synchronize()
        return array

    def clear(self, memory: "Memory") -> None:
        self.call("cudaMemsetAsync", memory.address, 0, memory.size, self.handle)

    def synchronize(self) -> None:
        self.call("cudaStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream as a CUDA graph; calling the result enqueues the graph."""
        self.call(
            "cudaStreamBeginCapture", self.handle, self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            enqueue()
        finally:
            graph = self.call("cudaStreamEndCapture", self.handle)
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)

        def launch() -> None:
            self.call("cudaGraphLaunch", executable, self.handle)

        weakref.finalize(launch, self.cuda.cudaGraphExecDestroy, executable)
        return launch

    def call(self, function: str, *arguments: Any) -> Any:
        """Call the CUDA runtime.

        Raises:
            RedipruneError: it gives an error.
        """
        status, *values = getattr(self.cuda, function)(*arguments)
        if status != self.cuda.cudaError_t.cudaSuccess:
            reason = self.cuda.cudaGetErrorString(status)[1].decode()
            hint = "close other programs on the GPU, or build with a smaller cache: --profile cache=…"
            more = f"; {hint}" if status == self.cuda.cudaError_t.cudaErrorMemoryAllocation else " (see nvidia-smi)"
            raise RedipruneError(f"CUDA: {function} fails: {reason}{more}, or use --backend ort")
        return values[0] if values else None


class Memory:
    """A piece of device memory."""

    def __init__(self, stream: Stream, size: int):
        self.size = size
        self.address = int(stream.call("cudaMalloc", max(size, 1)))
        weakref.finalize(self, stream.cuda.cudaFree, self.address)


class Buffers:
    """Device memory by name, kept between calls; a piece grows when a call needs more."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.pieces: dict[str, Memory] = {}

    def of(self, name: str, size: int) -> Memory:
        if name not in self.pieces or self.pieces[name].size < size:
            self.pieces[name] = self.stream.allocate(size)
        return self.pieces[name]

    def __getitem__(self, name: str) -> Memory:
        return self.pieces[name]
