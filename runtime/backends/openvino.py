"""OpenVINO on the CPU, reading the bundle's own graphs; the KV cache is its own state (`openvino_decoder`).

Products are computed in float32 unless `bf16` is asked for: OpenVINO's own choice where the CPU has bfloat16.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..bundle import Bundle, StageSpec
from ..errors import RedipruneError
from .arrays import Array
from .language_inputs import LanguageInputs
from .openvino_compiled import compiled_model
from .session import cast_inputs, check_cache_room


class OpenvinoStage:
    """A stage in OpenVINO. Called by itself a compiled model has one infer request for all threads: each run takes its own."""

    def __init__(self, bundle: Bundle, stage: str, threads: int, precision: str):
        self.spec = bundle.manifest.stages[stage]
        self.batch = _frames_at_once(self.spec, precision)
        self.session = _compile(bundle, stage, lambda: _read(bundle, stage, []), threads, precision)
        self.outputs = [port.name for port in self.spec.outputs]
        self.idle: deque[Any] = deque()  # infer requests that no thread uses; an append or pop is atomic

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Outputs by name, in memory of their own."""
        feed = cast_inputs(self.spec, inputs)
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.session.create_infer_request()
        values = request.infer(feed, share_inputs=True)
        outputs = {name: np.asarray(values[name]) for name in self.outputs}
        self.idle.append(request)
        return outputs


class OpenvinoLanguage:
    """The language stage in OpenVINO, its KV cache turned into OpenVINO's own state."""

    def __init__(self, bundle: Bundle, threads: int, precision: str):
        _library()
        from .openvino_decoder import conversions, keep_state, round_in_blocks  # imports the library

        spec = bundle.manifest.stages["language"]
        self.dtype = np.dtype(spec.inputs[0].dtype)
        self.inputs = LanguageInputs(spec)

        def read_model() -> Any:
            model = _read(bundle, "language", conversions())
            keep_state(model)
            round_in_blocks(model, spec.precision)
            return model

        self.session = _compile(bundle, "language", read_model, threads, precision)

    def start(self, length: int) -> "OpenvinoDecoding":
        return OpenvinoDecoding(self, length)


class OpenvinoDecoding:
    """A KV cache inside an infer request."""

    def __init__(self, language: OpenvinoLanguage, length: int):
        self.dtype, self.length, self.position = language.dtype, length, 0
        self.inputs = language.inputs
        self.request = language.session.create_infer_request()

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        tokens = embeds.shape[1]
        check_cache_room(self.length, self.position + tokens)
        feed = {
            "inputs_embeds": np.ascontiguousarray(embeds, self.dtype),
            "write_index": np.array([self.position], np.int64),
            "beam_idx": np.zeros(1, np.int32),
        }
        feed |= self.inputs.feed([self.position], tokens, positions, deepstack)
        logits = self.request.infer(feed, share_inputs=True)["logits"]
        self.position += tokens
        return logits[0, 0].astype(np.float32)


def _frames_at_once(spec: StageSpec, precision: str) -> int:
    """Four where it was measured to take 9 % less time: an INT8 tower of one picture size, in bfloat16.

    Else one, as in ONNX Runtime: the activations of one frame stay in the cache (docs/measurements/cpu-forms.md).
    """
    one_size = all(isinstance(size, int) for size in spec.inputs[0].shape[1:])
    return 4 if precision == "bf16" and spec.precision == "int8" and one_size else 1


def open_stage(bundle: Bundle, stage: str, threads: int, precision: str) -> OpenvinoStage:
    return OpenvinoStage(bundle, stage, threads, precision)


def open_language(bundle: Bundle, threads: int, precision: str) -> OpenvinoLanguage:
    return OpenvinoLanguage(bundle, threads, precision)


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise RedipruneError(
            "backend 'openvino' needs the openvino package; install it with: pip install 'rediprune[openvino]', or use "
            "--backend ort"
        ) from error
    return openvino


def _read(bundle: Bundle, stage: str, conversions: list[Any]) -> Any:
    """A stage's graph as an OpenVINO model.

    Raises:
        RedipruneError: OpenVINO is not installed, or does not know an operator of the graph.
    """
    library = _library()
    core = library.Core()
    for conversion in conversions:
        core.add_extension(conversion)
    path = bundle.path(bundle.manifest.stages[stage].file)
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise _refusal(bundle, stage, error) from error


def _compile(bundle: Bundle, stage: str, read_model: Callable[[], Any], threads: int, precision: str) -> Any:
    """Compile for the CPU, or take what was compiled before.

    Raises:
        RedipruneError: bf16 on a CPU without it, or OpenVINO refuses the model.
    """
    core = _library().Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RedipruneError("this CPU has no bfloat16 arithmetic; use --backend openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,  # its own default is 8 bits
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for its core whoever is on it, and everyone for the thread
    }
    try:
        return compiled_model(core, bundle, stage, settings, lambda: core.compile_model(read_model(), "CPU", settings))
    except RuntimeError as error:
        raise _refusal(bundle, stage, error) from error


def _refusal(bundle: Bundle, stage: str, error: RuntimeError) -> RedipruneError:
    # OpenVINO says where in its sources a check failed, line after line, and the reason last.
    reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1].removeprefix("-- ")
    return RedipruneError(
        f"OpenVINO {_library().__version__.split('-')[0]} cannot load the '{stage}' graph of '{bundle.folder}' ({reason}); "
        "use --backend ort"
    )
