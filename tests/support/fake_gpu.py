"""Stand-ins for the CUDA runtime, nvinfer and the selection kernels, so that the sessions' own logic runs without a GPU.

Device memory is host memory of known ranges, freed memory is spoiled, and what is enqueued is done when the host waits,
not before: a wait that is missing, an address that is off or a piece freed too early shows. Copies are counted. An
"engine" is the path of an ONNX graph, run by ONNX Runtime. What only a GPU can show (that engines compute right, that a
graph can be captured) is not shown here.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rediprune.graphs.selection.clip_reference import select_clip_tokens
from rediprune.graphs.selection.cuda.launcher import CLIP_MADE, clip_workspace
from rediprune.graphs.selection.reference import max_min_select, score_tokens

OK = 0
ALIGNMENT = 256
SPOILED = 0xFF  # NaNs, as fresh device memory may be


class Cuda:
    """`cuda.bindings.runtime` as far as it is used. A captured graph replays the calls made while capturing."""

    cudaStreamNonBlocking = 1
    cudaError_t = SimpleNamespace(cudaSuccess=OK, cudaErrorMemoryAllocation=2, cudaErrorInsufficientDriver=35)
    cudaMemPoolAttr = SimpleNamespace(cudaMemPoolAttrReleaseThreshold=4)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.blocks = {}  # address → size
        self.memory = []  # never given back: spoiled memory stays readable
        self.queue = []
        self.captured = None
        self.graphs = []
        self.launches = 0
        self.limit = 1 << 40
        self.state = OK
        self.copies = {1: [], 2: [], 3: []}  # to the device, to the host, within the device: bytes of each

    def cudaSetDevice(self, ordinal):
        return (self.state,)

    def cudaDeviceGetDefaultMemPool(self, ordinal):
        return OK, 3

    def cudaMemPoolSetAttribute(self, pool, attribute, value):
        assert (pool, attribute) == (3, 4)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        return OK, 7

    def cudaStreamDestroy(self, stream):
        return (OK,)

    def cudaMallocAsync(self, size, stream):
        assert stream == 7 and self.captured is None
        if sum(self.blocks.values()) + size > self.limit:
            return 2, None
        block = (ctypes.c_char * (size + ALIGNMENT)).from_buffer(bytearray([SPOILED]) * (size + ALIGNMENT))
        self.memory.append(block)
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self.blocks[address] = size
        return OK, address

    def cudaFreeAsync(self, address, stream):
        assert address in self.blocks and self.captured is None
        self.queue.append(lambda: ctypes.memset(address, SPOILED, self.blocks.pop(address)))
        return (OK,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        for address, on_device in ((to, kind != 2), (source, kind != 1)):
            assert self.holds(address, size) == on_device, "outside the allocation"
        self.copies[kind].append(size)
        self.do(lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def cudaMemsetAsync(self, address, value, size, stream):
        assert self.holds(address, size)
        self.do(lambda: ctypes.memset(address, value, size))
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        queue, self.queue = self.queue, []
        for work in queue:
            work()
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        graph, self.captured = self.captured, None
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs.append(graph)
        return OK, graph

    def cudaGraphDestroy(self, graph):
        return (OK,)

    def cudaGraphExecDestroy(self, graph):
        return (OK,)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        self.queue += graph
        return (OK,)

    def cudaGetErrorString(self, status):
        return OK, {2: b"out of memory", 35: b"CUDA driver version is insufficient"}[status]

    def do(self, work):
        """Enqueue; while capturing, into the graph."""
        (self.queue if self.captured is None else self.captured).append(work)

    def holds(self, address, size):
        """Whether a piece lies within one allocation."""
        return any(start <= address and address + size <= start + most for start, most in self.blocks.items())

    def array(self, address, shape, kind):
        """A view of device memory."""
        assert self.holds(address, int(np.prod(shape)) * np.dtype(kind).itemsize), "outside the allocation"
        return view(address, shape, kind)


Driver = SimpleNamespace(cuuint64_t=int)


def view(address, shape, kind):
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)


class Kernels:
    """`launcher.SelectionKernels` by the eager reference."""

    def __init__(self, cuda):
        self.cuda = cuda

    def score(self, features, query, workspace, relevance, similarity, *, frames, patches, channels, dtype, stream):
        def work():
            values = torch.from_numpy(self.cuda.array(features, (frames, patches, channels), dtype).copy())
            question = torch.from_numpy(self.cuda.array(query, (channels,), "float32").copy())
            scores = score_tokens(values, question)
            self.cuda.array(relevance, (frames, patches), "float32")[...] = scores[0]
            self.cuda.array(similarity, (frames, patches, patches), "float32")[...] = scores[1]

        assert self.cuda.holds(workspace, 2 * frames * patches * 4)
        self.cuda.do(work)

    def select(self, similarity, relevance, indices, *, frames, patches, count, alpha, stream):
        def work():
            scores = torch.from_numpy(self.cuda.array(similarity, (frames, patches, patches), "float32").copy())
            values = torch.from_numpy(self.cuda.array(relevance, (frames, patches), "float32").copy())
            self.cuda.array(indices, (frames, count), "int64")[...] = max_min_select(scores, values, count, alpha)

        self.cuda.do(work)

    def select_clip(self, features, query, workspace, indices, *, frames, patches, channels, dtype, settings, stream):
        def work():
            values = torch.from_numpy(self.cuda.array(features, (frames, patches, channels), dtype).copy())
            question = torch.from_numpy(self.cuda.array(query, (channels,), "float32").copy())
            chosen = select_clip_tokens(
                values, question, settings.count, settings.alpha, settings.least, settings.threshold
            )
            self.cuda.array(indices, (len(chosen),), "int64")[...] = chosen
            self.cuda.array(workspace + CLIP_MADE, (1,), "int32")[...] = len(chosen)

        assert self.cuda.holds(workspace, clip_workspace(frames, patches))
        self.cuda.do(work)

    def gather(self, features, indices, kept, *, frames, patches, count, row_bytes, stream):
        def work():
            rows = self.cuda.array(features, (frames, patches, row_bytes), "uint8")
            chosen = self.cuda.array(indices, (frames, count), "int64")
            self.cuda.array(kept, (frames, count, row_bytes), "uint8")[...] = np.take_along_axis(
                rows, chosen[:, :, None], axis=1
            )

        self.cuda.do(work)


class WaitingSession:
    """An ONNX Runtime session on the CPU in place of one on the GPU's stream: what was enqueued before is done first."""

    def __init__(self, session, cuda):
        self.session, self.cuda = session, cuda
        self.io_binding = session.io_binding

    def run_with_iobinding(self, binding):
        self.cuda.cudaStreamSynchronize(7)
        self.session.run_with_iobinding(binding)


class Nvinfer:
    """The nvinfer module as far as the runtime uses it."""

    __version__ = "9.9"

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        def __init__(self):
            pass

    TensorLocation = SimpleNamespace(HOST="host", DEVICE="device")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    def __init__(self, cuda):
        self.cuda = cuda

    def Runtime(self, log):
        return SimpleNamespace(deserialize_cuda_engine=lambda content: Engine(bytes(content[:]).decode(), self.cuda))


class Engine:
    def __init__(self, path, cuda):
        self.session = ort.InferenceSession(path)
        self.cuda = cuda
        self.inputs = {node.name: node for node in onnx.load(path, load_external_data=False).graph.input}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def get_tensor_location(self, name):
        return "host" if name == "num_keep" else "device"

    def create_runtime_config(self):
        return SimpleNamespace()

    def create_execution_context(self, config=None):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        assert address % ALIGNMENT == 0 or self.engine.get_tensor_location(name) == "host"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.engine.cuda.do(lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes, addresses):
        feed = {}
        for name, node in self.engine.inputs.items():
            kind = onnx.helper.tensor_dtype_to_np_dtype(node.type.tensor_type.elem_type)
            look = view if self.engine.get_tensor_location(name) == "host" else self.engine.cuda.array
            feed[name] = look(addresses[name], shapes.get(name, ()), kind).copy()
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True):
            self.engine.cuda.array(addresses[name], value.shape, value.dtype)[...] = value
