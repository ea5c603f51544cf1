"""ONNX Runtime on the CPU: sessions, and the KV cache of one request bound in place (`ort_batch`: of many)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle
from ..errors import RedipruneError
from ..machine import has_vnni
from .arrays import Array
from .language_inputs import LanguageInputs
from .ort_batch import OrtBatch
from .session import cast_inputs


class OrtStage:
    """A stage in ONNX Runtime."""

    batch = 1  # frame by frame is about a fifth faster than a batch of eight: the activations stay in the cache

    def __init__(self, bundle: Bundle, stage: str, threads: int):
        self.spec = bundle.manifest.stages[stage]
        self.session = _session(bundle, stage, threads)
        self.outputs = [port.name for port in self.spec.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        values = self.session.run(self.outputs, cast_inputs(self.spec, inputs))
        return dict(zip(self.outputs, (np.asarray(value) for value in values), strict=True))


class OrtLanguage:
    """The language stage in ONNX Runtime, its KV caches on a device as ONNX Runtime names it ("cpu", "cuda")."""

    def __init__(self, bundle: Bundle, session: ort.InferenceSession, device: str = "cpu"):
        spec = bundle.manifest.stages["language"]
        self.decoder = bundle.manifest.decoder
        self.session, self.device = session, device
        self.dtype = np.dtype(spec.inputs[0].dtype)
        self.inputs = LanguageInputs(spec)
        self.cache_names = [port.name.removeprefix("past.") for port in spec.inputs if port.name.startswith("past.")]

    def start(self, length: int) -> "OrtDecoding":
        return OrtDecoding(self, length)


class OrtCpuLanguage(OrtLanguage):
    """The language stage on the CPU, where many requests can be decoded in one call."""

    def start_batch(self) -> OrtBatch:
        """A KV cache with slots, empty until it is resized."""
        return OrtBatch(self)


class OrtDecoding:
    """A KV cache that ONNX Runtime writes in place: each tensor is bound as input and as output."""

    def __init__(self, language: OrtLanguage, length: int):
        decoder, self.dtype, device = language.decoder, language.dtype, language.device
        self.session, self.length, self.position = language.session, length, 0
        self.inputs = language.inputs
        self.binding = language.session.io_binding()
        shape = (1, decoder.kv_heads, length, decoder.head_width)
        self.cache = [self.bind_cache(name, shape) for name in language.cache_names]
        shape = (1, 1, decoder.vocabulary)
        self.logits = ort.OrtValue.ortvalue_from_shape_and_type(shape, self.dtype, device)
        self.binding.bind_ortvalue_output("logits", self.logits)

    def bind_cache(self, name: str, shape: tuple[int, ...]) -> Any:
        """Bind a tensor of zeros as `past.name` and as `present.name`; what holds its memory."""
        value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self.dtype))
        self.binding.bind_ortvalue_input(f"past.{name}", value)
        self.binding.bind_ortvalue_output(f"present.{name}", value)
        return value

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        tokens = embeds.shape[1]
        if self.position + tokens > self.length:
            raise RedipruneError(
                f"the KV cache has room for {self.length} positions, {self.position + tokens} are needed"
            )
        for name, array in self.inputs.feed([self.position], tokens, positions, deepstack).items():
            self.binding.bind_cpu_input(name, array)
        self.bind("inputs_embeds", embeds)
        self.binding.bind_cpu_input("write_index", np.array([self.position], np.int64))
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
        self.position += tokens
        return self.logits.numpy()[0, 0].astype(np.float32)

    def bind(self, name: str, array: Array) -> None:
        self.binding.bind_cpu_input(name, np.ascontiguousarray(array, self.dtype))


def open_stage(bundle: Bundle, stage: str, threads: int) -> OrtStage:
    return OrtStage(bundle, stage, threads)


def open_language(bundle: Bundle, threads: int) -> OrtCpuLanguage:
    return OrtCpuLanguage(bundle, _session(bundle, "language", threads))


def session_options(threads: int, int8_blocks: bool = False) -> ort.SessionOptions:
    """How every graph is loaded on the CPU.

    Args:
        threads: 0 leaves their number to ONNX Runtime.
        int8_blocks: whether the graph has weights in INT8 blocks.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads spin for work within a run: decoding with INT4 or INT8 weights takes up to a fifth less time than with
    # threads that sleep between operators (docs/measurements/bench-cpu.md). Stages run one after another, so they stop
    # with the run, or one stage's would take the cores from the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI the product of unsigned with signed integers saturates in 16 bits; this makes both unsigned, as graphs
    # are loaded (`Avx2WeightS8ToU8Transformer`, onnxruntime/core/optimizer). With VNNI nothing saturates, and the product
    # of two unsigned ones runs at half the rate: INT8 CLIP takes 1.7 times as long (docs/measurements/cpu-forms.md).
    # Weights in blocks it gives a zero point of one number, which their DequantizeLinear refuses as it runs (ONNX Runtime
    # 1.32, `QDQ::ConvertS8WeightToU8`): "x_zero_point must be null or have the same rank as x for blocked quantization".
    # Their products are of floats, or of MatMulNBits' own, and do not saturate.
    if not has_vnni() and not int8_blocks:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _session(bundle: Bundle, stage: str, threads: int) -> ort.InferenceSession:
    """Load a stage's graph.

    Raises:
        RedipruneError: ONNX Runtime refuses the graph, e.g. for external data that leads outside the bundle, or it has not
            the inputs and outputs that the manifest says.
    """
    path, spec = bundle.graph("ort", stage), bundle.manifest.stages[stage]
    options = session_options(threads, int8_blocks=spec.precision == "int8-weights")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a type per status, none of them documented
        raise RedipruneError(
            f"ONNX Runtime {ort.__version__} cannot load '{path}' ({str(error).splitlines()[0]}); make the bundle again "
            f"with: {bundle.manifest.rebuild_command(bundle.folder)}"
        ) from error
    rebuild = bundle.manifest.rebuild_command(bundle.folder)
    for kind, ports, found in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        differ = sorted({port.name for port in ports} ^ {port.name for port in found})
        if differ:
            raise RedipruneError(
                f"the manifest and '{path}' have not the same {kind} of '{stage}' ({', '.join(differ[:4])}); make the bundle "
                f"again with: {rebuild}"
            )
    return session
