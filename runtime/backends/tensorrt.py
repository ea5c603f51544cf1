"""TensorRT and TensorRT-RTX: a bundle's engines on the first GPU.

Arrays stay on the GPU between stages. The KV cache lies there too, written in place and reused by the next request; a
decoding step is a CUDA graph. An engine has one execution context, so threads take turns by the stream's lock.
"""

import mmap
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle import Bundle, EngineSpec
from ..errors import RedipruneError
from .arrays import Array
from .device import DeviceArray, open_stream
from .engine_profile import check_shapes
from .gpu import compute_capability
from .language_inputs import LanguageInputs
from .nvinfer import LIBRARIES, find_plugin, load_library, load_plugin, make_log
from .session import check_cache_room, fit_inputs, output_shapes


class EngineStage:
    """A stage as an engine."""

    def __init__(self, bundle: Bundle, backend: str, stage: str):
        self.stage, self.spec = stage, bundle.manifest.stages[stage]
        self.engine = Engine(bundle, backend, stage)
        self.batch = self.engine.profile[self.spec.inputs[0].name][1][0]  # frames the engine was tuned for

    def run(self, inputs: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """Outputs by name, on the GPU."""
        feed = fit_inputs(self.spec, inputs)
        self.engine.check(feed)
        with self.engine.stream.lock:
            return self._run(feed)

    def _run(self, feed: Mapping[str, Array]) -> dict[str, DeviceArray]:
        engine = self.engine
        placed = {name: engine.bind_input(name, array) for name, array in feed.items()}
        shapes = output_shapes(self.spec, feed)
        outputs = {port.name: engine.stream.empty(shapes[port.name], port.dtype) for port in self.spec.outputs}
        for name, array in outputs.items():
            engine.bind(name, array.address)
        engine.enqueue()
        engine.stream.synchronize()
        del placed  # held until here
        return outputs


class EngineLanguage:
    """The language stage as an engine. What goes in and out of a step lies at fixed addresses, for the CUDA graph."""

    def __init__(self, bundle: Bundle, backend: str):
        self.decoder = bundle.manifest.decoder
        spec = bundle.manifest.stages["language"]
        self.dtype = np.dtype(spec.inputs[0].dtype)
        self.engine = Engine(bundle, backend, "language")
        self.cache_names = [port.name.removeprefix("past.") for port in spec.inputs if port.name.startswith("past.")]
        self.cache_shape = self.engine.profile[f"past.{self.cache_names[0]}"][2]
        stream, most = self.engine.stream, self.engine.profile["inputs_embeds"][2][1]
        self.embeds = stream.empty((most, self.decoder.width), self.dtype)
        self.write_index = stream.empty((1,), np.int64)
        self.inputs = LanguageInputs(spec)
        sizes = {"position_ids": (self.inputs.axes, most), "deepstack": (self.inputs.taps, most, self.decoder.width)}
        types = {port.name: port.dtype for port in spec.inputs}
        self.others = {name: stream.empty(shape, types[name]) for name, shape in sizes.items() if shape[0]}
        self.logits = stream.empty((1, 1, self.decoder.vocabulary), self.dtype)
        self.idle: list[list[DeviceArray]] = []  # caches of finished requests
        self.graphs = not LIBRARIES[backend].own_graphs
        self.last: object = None  # whose call was the last

    def start(self, length: int) -> "EngineDecoding":
        room = self.cache_shape[2]
        if length > room:
            raise RedipruneError(
                f"the request takes {length} positions and the engine's KV cache has {room}; lower keep, frames or "
                f"max_new_tokens, or build a longer one with: {self.engine.rebuild} --profile cache={length}"
            )
        with self.engine.stream.lock:
            return EngineDecoding(self, self.idle.pop() if self.idle else self._allocate(), length)

    def _allocate(self) -> list[DeviceArray]:
        return [self.engine.stream.empty(self.cache_shape, self.dtype) for _ in self.cache_names]


class EngineDecoding:
    """A KV cache on the GPU, bound as input and as output of the engine."""

    def __init__(self, language: EngineLanguage, caches: list[DeviceArray], length: int):
        self.language, self.caches, self.length = language, caches, length
        self.position = 0
        self.me = object()
        self.single_steps = 0  # since the last call of another kind
        self.graph: Callable[[], None] | None = None
        for array in caches:  # what is masked is multiplied by 0, and must not be a NaN
            language.engine.stream.clear(array)
        weakref.finalize(self, language.idle.append, caches)

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        language, tokens = self.language, embeds.shape[1]
        check_cache_room(self.length, self.position + tokens)
        if not isinstance(embeds, DeviceArray) or embeds.dtype != language.dtype:
            embeds = np.ascontiguousarray(embeds, language.dtype)
        rows, most = embeds.reshape(tokens, language.decoder.width), language.embeds.shape[0]
        with language.engine.stream.lock:  # held until the logits, which all requests share, are read
            for at in range(0, tokens, most):  # a prompt longer than the profile goes in piece by piece
                given = (None if array is None else array[:, at : at + most] for array in (positions, deepstack))
                self._run(rows[at : at + most], *given)
            return np.asarray(language.logits)[0, 0].astype(np.float32)

    def _run(self, rows: Array, positions: np.ndarray | None, deepstack: np.ndarray | None) -> None:
        """Append rows [S,D] at positions [A,S], with their deepstack [T,S,D], to the cache."""
        language, engine, tokens = self.language, self.language.engine, rows.shape[0]
        engine.stream.copy(rows, language.embeds)
        engine.stream.copy(np.array([self.position], np.int64), language.write_index)
        for name, given in language.inputs.feed([self.position], tokens, positions, deepstack).items():
            engine.stream.copy(given, language.others[name])
            engine.bind(name, language.others[name].address, given.shape)
        engine.bind("inputs_embeds", language.embeds.address, (1, *rows.shape))
        engine.bind("write_index", language.write_index.address, (1,))
        engine.bind("logits", language.logits.address)
        for name, array in zip(language.cache_names, self.caches, strict=True):
            engine.bind(f"past.{name}", array.address, array.shape)
            engine.bind(f"present.{name}", array.address)
        self.position += tokens
        if not language.graphs:
            engine.enqueue()
            return
        if tokens > 1 or language.last is not self.me:  # other shapes or buffers were bound since
            self.single_steps, self.graph = 0, None
        language.last = self.me
        self.single_steps += tokens == 1
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
        self.stream = open_stream(backend)
        if stage == "select" and (plugin := find_plugin(backend)) is not None:
            load_plugin(module, plugin)
        try:
            self.runtime = module.Runtime(self.log)
        except TypeError as error:  # what the bindings raise where the library could not start
            raise RedipruneError(
                f"{LIBRARIES[backend].title} does not start ({self.log.reason}); compare its CUDA version with the "
                "driver's (nvidia-smi), or use --backend ort"
            ) from error
        path = bundle.path(EngineSpec.file(backend, stage))
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise RedipruneError(f"engine '{path}' does not load ({self.log.reason}); build it with: {self.rebuild}")
        self.context = self._context(module, LIBRARIES[backend].own_graphs)
        if self.context is None:
            raise RedipruneError(f"engine '{path}' does not start ({self.log.reason}); free memory of the GPU")
        self.host = module.TensorLocation.HOST

    def _context(self, module: Any, own_graphs: bool) -> Any:
        if not own_graphs:
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self.engine.create_execution_context(config)

    def check(self, feed: Mapping[str, Array]) -> None:
        check_shapes(self.stage, self.profile, feed, self.rebuild)

    def bind_input(self, name: str, array: Array) -> Array:
        """Bind an array, brought to the GPU, or to the host for a shape input; hold the result until the call is done."""
        if self.engine.get_tensor_location(name) == self.host:
            value = np.asarray(array)
            self.bind(name, value.ctypes.data)
            return value
        placed = self.stream.place(array)
        self.bind(name, placed.address, placed.shape)
        return placed

    def bind(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        if shape is not None:
            self._done(self.context.set_input_shape(name, tuple(shape)))
        self._done(self.context.set_tensor_address(name, address))

    def enqueue(self) -> None:
        self._done(self.context.execute_async_v3(self.stream.handle))

    def _done(self, ok: bool) -> None:
        if not ok:
            raise RedipruneError(f"the '{self.stage}' engine fails: {self.log.reason}; build it with: {self.rebuild}")


def open_stage(bundle: Bundle, stage: str, threads: int, backend: str) -> EngineStage:
    return EngineStage(bundle, backend, stage)


def open_language(bundle: Bundle, threads: int, backend: str) -> EngineLanguage:
    return EngineLanguage(bundle, backend)


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
    runs_on = LIBRARIES[backend].targets
    if runs_on and present not in runs_on:
        raise RedipruneError(
            f"{title} does not run on this GPU, which is {present}; it takes {', '.join(runs_on)}. Use --backend tensorrt, "
            "or --backend ort"
        )
    if present not in spec.compute_capability:
        target = f" --target {present}" if backend == "tensorrt-rtx" else ""
        raise RedipruneError(
            f"the engines of '{bundle.folder}' are for {', '.join(spec.compute_capability)} and this GPU is {present}; "
            f"build them again with: {rebuild}{target}"
        )
    return module, spec
