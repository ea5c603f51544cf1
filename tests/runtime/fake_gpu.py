"""Stand-ins for the CUDA runtime and for nvinfer, so that the sessions' own logic runs without a GPU.

Device memory is host memory of a known range; an "engine" is the path of an ONNX graph, run by ONNX Runtime. What only
a GPU can show (that engines compute right, that a graph can be captured) is not shown here.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort

OK = 0


class Cuda:
    """`cuda.bindings.runtime` as far as it is used. A captured graph replays the calls made while capturing."""

    cudaStreamNonBlocking = 1
    cudaError_t = SimpleNamespace(cudaSuccess=OK, cudaErrorMemoryAllocation=2)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.blocks = {}
        self.captured = None
        self.graphs = []
        self.launches = 0
        self.limit = 1 << 40

    def cudaSetDevice(self, ordinal):
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        return OK, 7

    def cudaStreamDestroy(self, stream):
        return (OK,)

    def cudaMalloc(self, size):
        if sum(len(block) for block in self.blocks.values()) + size > self.limit:
            return 2, None
        block = (ctypes.c_char * size).from_buffer(bytearray(b"\xff" * size))  # NaNs, as fresh device memory may be
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return OK, address

    def cudaFree(self, address):
        self.blocks.pop(address)
        return (OK,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        device = to if kind == 1 else source
        assert size <= len(self.blocks[device]), "outside the allocation"
        ctypes.memmove(to, source, size)
        return (OK,)

    def cudaMemsetAsync(self, address, value, size, stream):
        ctypes.memset(address, value, size)
        return (OK,)

    def cudaStreamSynchronize(self, stream):
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
        for work in graph:
            work()
        return (OK,)

    def cudaGetErrorString(self, status):
        return OK, b"out of memory"

    def do(self, work):
        """Enqueue: remembered while capturing, done at once otherwise."""
        if self.captured is None:
            work()
        else:
            self.captured.append(work)


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
            feed[name] = self._view(addresses[name], shapes.get(name, ()), kind).copy()
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True):
            self._view(addresses[name], value.shape, value.dtype)[...] = value

    def _view(self, address, shape, kind):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        block = self.engine.cuda.blocks.get(address)
        assert block is None or size <= len(block), "outside the allocation"
        return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)
