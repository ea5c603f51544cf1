"""One stage's engine, built in a process of its own: the library aborts on some graphs, and the caller must survive it.

`python -m rediprune.export.build.tensorrt_worker` reads a `Job` as JSON from stdin and writes JSON lines to stdout:
{"progress": [what, fraction]} …, then {"result": …} or {"error": "one line"}. Serves `tensorrt` and `tensorrt_rtx`,
which have one API.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import onnx

from ...runtime.backends.nvinfer import load_plugin, make_log, one_line
from ...runtime.bundle.atomic_file import replacing
from ...runtime.errors import RedipruneError
from ...runtime.memory import peak_memory
from .engine_precisions import asked_precisions, built_precisions, check_precisions
from .shape_profiles import Profile


@dataclass(frozen=True)
class Job:
    """What to build.

    Attributes:
        module: "tensorrt" or "tensorrt_rtx".
        stage: its name.
        graph, engine: the ONNX file, and the file to write.
        profile: least, usual and greatest sizes of its inputs.
        targets: compute capabilities to cross-compile for, "sm_89"; none is the library's default.
        plugin: library with the plugin `MaxMinSelect`; without it the node's function body is built.
        timing_cache: file kept between builds, where the library times anything.
    """

    module: str
    stage: str
    graph: str
    engine: str
    profile: Profile
    targets: list[str]
    plugin: str | None = None
    timing_cache: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it: precisions of the heavy operations, the profile as the library took it, bytes."""

    precision: str
    profile: Profile
    peak_memory: int
    size: int


def build_engine(job: Job, tell: Any) -> Outcome:
    """Build an engine; `tell(what, fraction)` is False once nobody listens any more.

    Raises:
        RedipruneError: the graph is refused, the build fails or gives other precisions than asked.
    """
    trt = import_module(job.module)
    log = make_log(trt, lambda message: message.startswith("Layers:"))
    if job.plugin is not None:
        load_plugin(trt, job.plugin)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what the bindings raise where the library could not start
        raise RedipruneError(f"the library does not start: {log.reason}") from error
    # Networks of TensorRT 11 and RTX are strongly typed always; TensorRT 10 wants it said.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tell("parsing", 0.0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(_prepared(job), job.graph):
        reasons = [parser.get_error(i) for i in range(parser.num_errors)]
        where = "; ".join(f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in reasons) or log.reason
        raise RedipruneError(f"the graph is refused: {one_line(where)}")
    _allow_decomposition(trt, network)

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names the ONNX nodes of each built layer
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and then "fp32" products keep 10 bits of mantissa
    taken = _add_profile(builder, config, network, job.profile)
    if job.targets:
        config.num_compute_capabilities = len(job.targets)
        for i, target in enumerate(job.targets):
            capability = getattr(trt.ComputeCapability, target.replace("sm_", "SM"))
            if not config.set_compute_capability(capability, i):
                raise RedipruneError(f"the library does not build for {target}")
    cache = _timing_cache(job, config)
    config.progress_monitor = _progress_monitor(trt, tell)
    asked = asked_precisions(network)
    with open(job.engine, "wb") as file:
        done = builder.build_serialized_network_to_stream(network, config, _stream_writer(trt, file))
        file.flush()
        os.fsync(file.fileno())
    if not done:  # also where the builder that started this process is gone, and nobody else tidies up
        os.unlink(job.engine)
        raise RedipruneError(f"the engine cannot be built: {log.reason}")
    if cache is not None:
        with suppress(OSError), replacing(Path(str(job.timing_cache))) as beside:  # other builds use it too
            beside.write_bytes(memoryview(cache.serialize()))
    layers = "".join(log.kept) or _inspected(trt, log, job.engine)
    precision = check_precisions(job.stage, asked, built_precisions(layers))
    return Outcome(precision, taken, peak_memory(), os.path.getsize(job.engine))


def _prepared(job: Job) -> bytes:
    """The graph as this build wants it, its weights untouched in their own file.

    - A dimension that the profile fixes becomes static: KV_CACHE_UPDATE takes no other cache length
      (https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/KVCacheUpdate.html).
    - With the plugin the function's body goes: the parser prefers a body to a plugin
      (onnx/onnx-tensorrt, ModelImporter.cpp, "Importing as a local function").
    """
    model = onnx.load(job.graph, load_external_data=False)
    fixed = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            sizes = {shape[axis] for shape in job.profile[value.name]} if dim.dim_param else ()
            if len(sizes) == 1:
                fixed[dim.dim_param] = sizes.pop()
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    if job.plugin is not None:
        del model.functions[:]
    return model.SerializeToString()


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let attention run as matrix products where no fused kernel fits (float32, odd head widths): it fails otherwise.

    The bindings give an `ILayer` whose class has to be set by hand, as NVIDIA's samples do.
    """
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _add_profile(builder: Any, config: Any, network: Any, asked: Profile) -> Profile:
    """Add a profile and read it back."""
    profile = builder.create_optimization_profile()
    taken = {}
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.name not in asked:
            continue
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *asked[tensor.name])
            sizes = profile.get_shape_input(tensor.name)
        else:
            profile.set_shape(tensor.name, *asked[tensor.name])
            sizes = profile.get_shape(tensor.name)
        taken[tensor.name] = [[int(n) for n in size] for size in sizes]
    if config.add_optimization_profile(profile) < 0 or taken != asked:
        raise RedipruneError(f"the library does not take the profile {asked}")
    return taken


def _timing_cache(job: Job, config: Any) -> Any:
    """The timing cache of earlier builds; None where the library times nothing (RTX compiles on the user's GPU)."""
    if job.timing_cache is None:
        return None
    file = Path(job.timing_cache)
    for content in (file.read_bytes() if file.is_file() else b"", b""):  # one that is damaged or foreign gives way
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _inspected(trt: Any, log: Any, engine: str) -> str:
    """The finished engine's layers, for a library that does not log them; needs a GPU."""
    loaded = trt.Runtime(log).deserialize_cuda_engine(Path(engine).read_bytes())
    if loaded is None:
        raise RedipruneError(f"the finished engine does not load: {log.reason}")
    return loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)


def _progress_monitor(trt: Any, tell: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Nested phases as one fraction."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: list[list[Any]] = []  # name, steps, steps done; outermost first
            self.going = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.append([phase_name, num_steps, 0])
            self._tell()

        def step_complete(self, phase_name: str, step: int) -> bool:
            for phase in self.phases:
                if phase[0] == phase_name:
                    phase[2] = step + 1
            self._tell()
            return self.going

        def phase_finish(self, phase_name: str) -> None:
            self.phases = [phase for phase in self.phases if phase[0] != phase_name]

        def _tell(self) -> None:
            fraction = 0.0
            for _, steps, done in reversed(self.phases):
                fraction = min((done + fraction) / steps, 1.0)
            self.going = self.going and tell(self.phases[-1][0].lower() if self.phases else "finishing", fraction)

    return Monitor()


def _stream_writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):
        """Takes the engine piece by piece, so that it never lies whole in memory."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return file.write(data)

    return Writer()


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the library prints must not end up among the JSON lines
    told = ["", -1.0]

    def tell(what: str, fraction: float) -> bool:
        if what == told[0] and fraction - float(told[1]) < 0.01:
            return True
        told[:] = [what, fraction]
        return _send(channel, {"progress": told})

    try:
        outcome = build_engine(Job(**json.load(sys.stdin)), tell)
        _send(channel, {"result": asdict(outcome)})
    except RedipruneError as error:
        _send(channel, {"error": str(error)})
    except MemoryError:
        _send(channel, {"error": "not enough memory"})


def _send(channel: TextIO, document: Any) -> bool:
    """Write a line; False where the builder that started this process is gone."""
    try:
        channel.write(json.dumps(document) + "\n")
        channel.flush()
    except (BrokenPipeError, ValueError):
        return False
    return True


if __name__ == "__main__":
    main()
