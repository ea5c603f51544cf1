"""ONNX Runtime on the CPU: how its sessions are made."""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle
from ..errors import RedipruneError
from ..machine import has_vnni
from .arrays import Array
from .ort_batch import OrtBatch
from .ort_kv_cache import OrtLanguage
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


class OrtCpuLanguage(OrtLanguage):
    """The language stage on the CPU, where many requests can be decoded in one call."""

    def start_batch(self) -> OrtBatch:
        """A KV cache with slots, empty until it is resized."""
        return OrtBatch(self)


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
