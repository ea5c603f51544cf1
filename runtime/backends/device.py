"""Arrays, the stream and CUDA graphs of the first GPU, through cuda-bindings. No torch.

Every GPU backend enqueues on the process's one stream, where work runs in order: what one stage writes the next may
read, and memory may be freed while work on it is still queued. Memory comes from CUDA's own stream-ordered pool, which
gives out again what was freed, so that every array has memory of its own and still nothing is allocated anew.

Threads take turns: whoever has `Stream.lock` puts work on the stream. A CUDA graph that is being captured would take in what
another thread puts there, and a wait would let go of what another thread's copies still read.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from threading import RLock
from typing import Any

import numpy as np

from ..errors import RedipruneError

ALIGNMENT = 256  # bytes; of whatever CUDA allocates, and what engines may expect of an address


class Memory:
    """A piece of device memory, freed with the object."""

    def __init__(self, stream: "Stream", size: int):
        self.address = int(stream.call("cudaMallocAsync", max(size, 1), stream.handle))
        weakref.finalize(self, stream.free, self.address)


class DeviceArray:
    """A contiguous array on the GPU. Its memory lives as long as any view of it.

    `np.asarray` downloads it, as any function of numpy does: a stage on the CPU need not know where its inputs lie.
    """

    def __init__(self, stream: "Stream", memory: Memory, shape: Sequence[int], dtype: Any, offset: int = 0):
        self.stream, self.memory, self.offset = stream, memory, offset
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)

    @property
    def address(self) -> int:
        return self.memory.address + self.offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def reshape(self, *shape: int) -> "DeviceArray":
        if int(np.prod(shape)) * self.dtype.itemsize != self.nbytes:
            raise ValueError(f"{list(self.shape)} cannot be seen as {list(shape)}")
        return DeviceArray(self.stream, self.memory, shape, self.dtype, self.offset)

    def __getitem__(self, rows: int | slice) -> "DeviceArray":
        """A view of one row, or of rows that follow one another."""
        stride = self.nbytes // self.shape[0] if self.shape[0] else 0
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step != 1:
                raise IndexError("rows on the GPU are taken without gaps")
            shape = (max(stop - start, 0), *self.shape[1:])
        else:
            start, shape = range(self.shape[0])[rows], self.shape[1:]
        return DeviceArray(self.stream, self.memory, shape, self.dtype, self.offset + start * stride)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on the GPU cannot be seen from the host without a copy")
        array = self.stream.download(self)
        return array if dtype is None else array.astype(dtype, copy=False)


class Stream:
    """A stream of the first GPU. Get it with `open_stream`.

    Attributes:
        lock: held by a thread for as long as its work must not be mixed with another's. Every method takes it.
    """

    def __init__(self, cuda: Any, driver: Any):
        self.cuda = cuda
        self.lock = RLock()
        self.call("cudaSetDevice", 0)
        pool = self.call("cudaDeviceGetDefaultMemPool", 0)
        # By default the pool gives everything back to the system whenever the host waits, which is after every stage.
        threshold = cuda.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        self.call("cudaMemPoolSetAttribute", pool, threshold, driver.cuuint64_t(2**64 - 1))
        self.handle = int(self.call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking))
        self.held: list[np.ndarray] = []  # what queued copies read on the host
        self.capturing = False
        self.freed: list[int] = []  # memory that was dropped meanwhile
        weakref.finalize(self, cuda.cudaStreamDestroy, self.handle)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """An array of memory of its own, not initialised."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return DeviceArray(self, Memory(self, size), shape, dtype)

    def place(self, array: "np.ndarray | DeviceArray") -> DeviceArray:
        """An array on the GPU, its address aligned: itself where it is so already, else a copy."""
        if isinstance(array, DeviceArray) and array.address % ALIGNMENT == 0:
            return array
        placed = self.empty(array.shape, array.dtype)
        self.copy(array, placed)
        return placed

    def copy(self, source: "np.ndarray | DeviceArray", target: DeviceArray) -> None:
        """Enqueue the copy of a contiguous array from either side. The host's must not change before a wait."""
        if isinstance(source, DeviceArray):
            address, kind = source.address, self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        else:
            address, kind = source.ctypes.data, self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        with self.lock:
            if not isinstance(source, DeviceArray):
                self.held.append(source)
            if source.nbytes:
                self.call("cudaMemcpyAsync", target.address, address, source.nbytes, kind, self.handle)

    def download(self, source: DeviceArray) -> np.ndarray:
        """The array on the host, once everything before is done."""
        array = np.empty(source.shape, source.dtype)
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        with self.lock:
            if array.nbytes:
                self.call("cudaMemcpyAsync", array.ctypes.data, source.address, array.nbytes, kind, self.handle)
            self.synchronize()
        return array

    def clear(self, array: DeviceArray) -> None:
        self.call("cudaMemsetAsync", array.address, 0, array.nbytes, self.handle)

    def synchronize(self) -> None:
        """Wait until everything is done."""
        with self.lock:
            self.call("cudaStreamSynchronize", self.handle)
            self.held.clear()

    def free(self, address: int) -> None:
        """Give memory back to the pool, once the work queued by now is done."""
        with self.lock:
            if self.capturing:  # it is no part of the graph; the garbage collector comes when it likes
                self.freed.append(address)
            else:
                self.cuda.cudaFreeAsync(address, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream as a CUDA graph; calling the result enqueues the graph."""
        mode = self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.lock:
            self.call("cudaStreamBeginCapture", self.handle, mode)
            self.capturing = True
            try:
                enqueue()
            finally:
                try:
                    graph = self.call("cudaStreamEndCapture", self.handle)
                finally:
                    self.capturing = False
                    while self.freed:
                        self.free(self.freed.pop())
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
        with self.lock:
            status, *values = getattr(self.cuda, function)(*arguments)
        if status != self.cuda.cudaError_t.cudaSuccess:
            reason = self.cuda.cudaGetErrorString(status)[1].decode()
            errors = self.cuda.cudaError_t
            hint = {
                errors.cudaErrorMemoryAllocation: "close other programs on the GPU, build with a smaller cache (--profile "
                "cache=…)",
                errors.cudaErrorInsufficientDriver: "update NVIDIA's driver",
            }.get(status, "see nvidia-smi")
            raise RedipruneError(f"CUDA: {function} fails: {reason}; {hint}, or use --backend ort")
        return values[0] if values else None


def open_stream(backend: str) -> Stream:
    """The process's one stream.

    Raises:
        RedipruneError: cuda-bindings is not installed, or CUDA does not start; says that `backend` needs it.
    """
    try:
        return _stream()
    except ImportError as error:
        raise RedipruneError(
            f"backend '{backend}' needs cuda-bindings; install it with: pip install 'cuda-bindings>=12.9,<14', or use "
            "--backend ort"
        ) from error


@cache
def _stream() -> Stream:
    return Stream(import_module("cuda.bindings.runtime"), import_module("cuda.bindings.driver"))
