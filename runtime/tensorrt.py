"""TensorRT and TensorRT-RTX: a bundle's engines on the first GPU.

Device buffers are made once and reused. The KV cache stays on the device, written in place; a decoding step is a CUDA
graph.
"""

import mmap
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from .bundle import Bundle, EngineSpec, StageSpec
from .device import Buffers, Memory, Stream
from .errors import RedipruneError
from .gpu import compute_capability
from .nvinfer import LIBRARIES, find_plugin, load_library, load_plugin, make_log
from .profile import check_shapes
from .session import cast_inputs


class EngineStage:
    """A stage as an engine."""

    def __init__(self, bundle: Bundle, backend: str, stage: str):
        self.stage, self.spec = stage, bundle.manifest.stages[stage]
        self.engine = Engine(bundle, backend, stage)
        self.batch = self.engine.profile[self.spec.inputs[0].name][1][0]  # frames the engine was tuned for

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = cast_inputs(self.spec, inputs)
        self.engine.check(feed)
        for name, array in feed.items():
            self.engine.bind_input(name, array)
        sizes = _sizes(self.spec, feed)
        outputs = {}
        for port in self.spec.outputs:
            outputs[port.name] = np.empty([sizes[d] if isinstance(d, str) else d for d in port.shape], port.dtype)
            self.engine.bind_output(port.name, outputs[port.name].nbytes)
        self.engine.enqueue()
        for name, array in outputs.items():
            self.engine.download(name, array)
        return outputs


class EngineLanguage:
    """The language stage as an engine."""

    def __init__(self, bundle: Bundle, backend: str):
        self.decoder = bundle.manifest.decoder
        spec = bundle.manifest.stages["language"]
        self.dtype = np.dtype(spec.inputs[0].dtype)
        self.engine = Engine(bundle, backend, "language")
        self.cache_names = [port.name.removeprefix("past.") for port in spec.inputs if port.name.startswith("past.")]
        self.cache_shape = self.engine.profile[f"past.{self.cache_names[0]}"][2]
        self.most_tokens = self.engine.profile["inputs_embeds"][2][1]
        self.engine.buffers.of("inputs_embeds", self.most_tokens * self.decoder.width * self.dtype.itemsize)
        self.idle: list[list[Memory]] = []  # caches of finished requests
        self.graphs = not LIBRARIES[backend].own_graphs
        self.last: object = None  # whose call was the last

    def start(self, length: int) -> "EngineDecoding":
        room = self.cache_shape[2]
        if length > room:
            raise RedipruneError(
                f"the request takes {length} positions and the engine's KV cache has {room}; lower keep, frames or "
                f"max_new_tokens, or build a longer one with: {self.engine.rebuild} --profile cache={length}"
            )
        return EngineDecoding(self, self.idle.pop() if self.idle else self._allocate(), length)

    def _allocate(self) -> list[Memory]:
        size = int(np.prod(self.cache_shape)) * self.dtype.itemsize
        return [self.engine.stream.allocate(size) for _ in self.cache_names]


class EngineDecoding:
    """A KV cache on the device, bound as input and as output of the engine."""

    def __init__(self, language: EngineLanguage, caches: list[Memory], length: int):
        self.language, self.caches, self.length = language, caches, length
        self.position = 0
        self.me = object()
        self.single_steps = 0  # since the last call of another kind
        self.graph: Callable[[], None] | None = None
        self.logits = np.empty((1, 1, language.decoder.vocabulary), language.dtype)
        for memory in caches:  # what is masked is multiplied by 0, and must not be a NaN
            language.engine.stream.clear(memory)
        weakref.finalize(self, language.idle.append, caches)

    def step(self, embeds: np.ndarray) -> np.ndarray:
        tokens, most = embeds.shape[1], self.language.most_tokens
        if self.position + tokens > self.length:
            raise RedipruneError(
                f"the KV cache has room for {self.length} positions, {self.position + tokens} are needed"
            )
        for at in range(0, tokens, most):  # a prompt longer than the profile goes in piece by piece
            self._run(np.ascontiguousarray(embeds[:, at : at + most], self.language.dtype))
        return self.language.engine.download("logits", self.logits)[0, 0].astype(np.float32)

    def _run(self, embeds: np.ndarray) -> None:
        language, engine = self.language, self.language.engine
        engine.bind_input("inputs_embeds", embeds)
        engine.bind_input("write_index", np.array([self.position], np.int64))
        engine.bind_output("logits", self.logits.nbytes)
        for name, memory in zip(language.cache_names, self.caches, strict=True):
            engine.bind(f"past.{name}", memory, language.cache_shape)
            engine.bind(f"present.{name}", memory)
        self.position += embeds.shape[1]
        if not language.graphs:
            engine.enqueue()
            return
        if embeds.shape[1] > 1 or language.last is not self.me:  # other shapes or buffers were bound since
            self.single_steps, self.graph = 0, None
        language.last = self.me
        self.single_steps += embeds.shape[1] == 1
        if self.single_steps < 2:  # the first call at a shape may allocate, which no graph can hold
            engine.enqueue()
            return
        if self.graph is None:
            self.graph = engine.stream.capture(engine.enqueue)
        self.graph()


class Engine:
    """A deserialised engine, its execution context and its device buffers."""

    def __init__(self, bundle: Bundle, backend: str, stage: str):
        self.stage, self.rebuild = stage, bundle.build_command(backend)
        module, spec = _usable(bundle, backend, stage)
        self.profile = spec.profile[stage]
        self.log = make_log(module)
        self.stream = stream_of(backend)
        if stage == "select" and (plugin := find_plugin(backend)) is not None:
            load_plugin(module, plugin)
        self.runtime = module.Runtime(self.log)
        path = bundle.path(EngineSpec.file(backend, stage))
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise RedipruneError(f"engine '{path}' does not load ({self.log.reason}); build it with: {self.rebuild}")
        self.context = self._context(module, LIBRARIES[backend].own_graphs)
        if self.context is None:
            raise RedipruneError(f"engine '{path}' does not start ({self.log.reason}); free memory of the GPU")
        self.host = module.TensorLocation.HOST
        self.buffers = Buffers(self.stream)
        self.held: dict[str, np.ndarray] = {}  # what the host side of a copy or a shape input points to

    def _context(self, module: Any, own_graphs: bool) -> Any:
        if not own_graphs:
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self.engine.create_execution_context(config)

    def check(self, feed: Mapping[str, np.ndarray]) -> None:
        check_shapes(self.stage, self.profile, feed, self.rebuild)

    def bind_input(self, name: str, array: np.ndarray) -> None:
        """Bring an array to the device and bind it; a shape input stays on the host."""
        self.held[name] = array
        if self.engine.get_tensor_location(name) == self.host:
            self._done(self.context.set_tensor_address(name, array.ctypes.data))
            return
        memory = self.buffers.of(name, array.nbytes)
        self.stream.upload(array, memory)
        self.bind(name, memory, array.shape)

    def bind_output(self, name: str, size: int) -> None:
        self.bind(name, self.buffers.of(name, size))

    def bind(self, name: str, memory: Memory, shape: Any = None) -> None:
        if shape is not None:
            self._done(self.context.set_input_shape(name, tuple(shape)))
        self._done(self.context.set_tensor_address(name, memory.address))

    def enqueue(self) -> None:
        self._done(self.context.execute_async_v3(self.stream.handle))

    def download(self, name: str, array: np.ndarray) -> np.ndarray:
        return self.stream.download(self.buffers[name], array)

    def _done(self, ok: bool) -> None:
        if not ok:
            raise RedipruneError(f"the '{self.stage}' engine fails: {self.log.reason}; build it with: {self.rebuild}")


def open_stage(bundle: Bundle, stage: str, threads: int, backend: str = "tensorrt") -> EngineStage:
    return EngineStage(bundle, backend, stage)


def open_language(bundle: Bundle, threads: int, backend: str = "tensorrt") -> EngineLanguage:
    return EngineLanguage(bundle, backend)


@cache
def stream_of(backend: str) -> Stream:
    """The one stream that a backend's stages run on, one after another."""
    return Stream(backend)


def _usable(bundle: Bundle, backend: str, stage: str) -> tuple[Any, EngineSpec]:
    """The library and the engine's entry, once nothing speaks against loading it.

    Raises:
        RedipruneError: no package or GPU; an engine that is missing, stale or damaged, of another library version or
            for another GPU.
    """
    title = LIBRARIES[backend].title
    module = load_library(backend)
    present = compute_capability(backend)
    spec = bundle.check_engine(backend, stage)
    rebuild = bundle.build_command(backend)
    if spec.version != module.__version__:
        raise RedipruneError(
            f"the engines of '{bundle.folder}' were built by {title} {spec.version} and {module.__version__} is "
            f"installed; build them again with: {rebuild}"
        )
    if present not in spec.compute_capability:
        target = f" --target {present}" if backend == "tensorrt-rtx" else ""
        raise RedipruneError(
            f"the engines of '{bundle.folder}' are for {', '.join(spec.compute_capability)} and this GPU is {present}; "
            f"build them again with: {rebuild}{target}"
        )
    return module, spec


def _sizes(spec: StageSpec, feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Symbol → size in this call. Kept tokens are asked for by number, and no more than there are patches."""
    sizes = {}
    for port in spec.inputs:
        sizes |= {d: n for d, n in zip(port.shape, feed[port.name].shape, strict=True) if isinstance(d, str)}
    if "num_keep" in feed:
        sizes["kept"] = min(int(feed["num_keep"]), sizes["patches"])
    return sizes
