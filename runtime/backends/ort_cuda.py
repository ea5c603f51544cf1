"""ONNX Runtime on the first GPU (onnxruntime-gpu). Arrays and KV cache stay there; it runs on the process's stream."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle
from ..errors import RedipruneError
from .arrays import Array
from .device import DeviceArray, open_stream
from .gpu import compute_capability
from .ort_kv_cache import OrtDecoding, OrtLanguage
from .session import fit_inputs, output_shapes

BACKEND, PROVIDER, DEVICE = "ort-cuda", "CUDAExecutionProvider", "cuda"


class OrtCudaStage:
    """A stage in ONNX Runtime CUDA."""

    batch = 8

    def __init__(self, bundle: Bundle, stage: str):
        self.spec = bundle.manifest.stages[stage]
        self.session = _session(bundle, stage)
        self.stream = open_stream(BACKEND)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """Outputs by name, on the GPU."""
        with self.stream.lock:
            return self._run(fit_inputs(self.spec, inputs))

    def _run(self, feed: Mapping[str, Array]) -> dict[str, DeviceArray]:
        shapes = output_shapes(self.spec, feed)
        binding = self.session.io_binding()
        placed = {name: self.stream.place(array) for name, array in feed.items() if array.shape}
        for name, array in feed.items():
            if name in placed:
                _bind(binding.bind_input, name, placed[name])
            else:  # a scalar may be wanted on the host: ONNX Runtime brings it to where the graph has it
                binding.bind_cpu_input(name, np.asarray(array))
        outputs = {port.name: self.stream.empty(shapes[port.name], port.dtype) for port in self.spec.outputs}
        for name, array in outputs.items():
            _bind(binding.bind_output, name, array)
        self.session.run_with_iobinding(binding)
        self.stream.synchronize()
        return outputs


class OrtCudaLanguage(OrtLanguage):
    """The language stage in ONNX Runtime CUDA."""

    def start(self, length: int) -> "OrtCudaDecoding":
        with open_stream(BACKEND).lock:
            return OrtCudaDecoding(self, length)


class OrtCudaDecoding(OrtDecoding):
    """Its KV cache lies on the GPU; so may the embeddings of a step."""

    def bind_cache(self, name: str, shape: tuple[int, ...]) -> DeviceArray:
        # From CUDA's pool: ONNX Runtime's allocator takes up to 2 ms a tensor, 90 ms a request (H100, 48 tensors).
        cache = open_stream(BACKEND).empty(shape, self.dtype)
        cache.stream.clear(cache)
        _bind(self.binding.bind_input, f"past.{name}", cache)
        _bind(self.binding.bind_output, f"present.{name}", cache)
        return cache

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        with open_stream(BACKEND).lock:
            return super().step(embeds, positions, deepstack)

    def bind(self, name: str, array: Array) -> None:
        if isinstance(array, DeviceArray) and array.dtype == self.dtype:
            self.placed = array.stream.place(array)  # bound by its address: held until the next step
            _bind(self.binding.bind_input, name, self.placed)
        else:
            super().bind(name, array)


def open_stage(bundle: Bundle, stage: str, threads: int) -> OrtCudaStage:
    return OrtCudaStage(bundle, stage)


def open_language(bundle: Bundle, threads: int) -> OrtCudaLanguage:
    return OrtCudaLanguage(bundle, _session(bundle, "language"), DEVICE)


def _bind(how: Any, name: str, array: DeviceArray) -> None:
    how(name, DEVICE, 0, array.dtype.type, list(array.shape), array.address)


def _session(bundle: Bundle, stage: str) -> ort.InferenceSession:
    """Load a stage's graph on the GPU.

    Raises:
        RedipruneError: this ONNX Runtime has no CUDA, there is no GPU, or the graph or CUDA's libraries do not load.
    """
    if PROVIDER not in ort.get_available_providers():
        raise RedipruneError(
            f"backend '{BACKEND}' needs onnxruntime-gpu and this is ONNX Runtime {ort.__version__} without CUDA; install "
            "it with: pip uninstall onnxruntime && pip install onnxruntime-gpu, or use --backend ort"
        )
    compute_capability(BACKEND)
    if hasattr(ort, "preload_dlls"):  # finds the CUDA and cuDNN that pip installed
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    path = bundle.path(bundle.manifest.stages[stage].file)
    # Not TF32, the provider's default: float32 products would keep 10 bits of mantissa.
    settings = {"use_tf32": "0", "user_compute_stream": str(open_stream(BACKEND).handle)}
    providers = [(PROVIDER, settings), "CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a type per status, none of them documented
        raise RedipruneError(
            f"ONNX Runtime {ort.__version__} cannot load '{path}' on the GPU ({str(error).splitlines()[0]}); use "
            "--backend ort"
        ) from error
    if PROVIDER not in session.get_providers():  # it falls back to the CPU without a word
        raise RedipruneError(
            f"ONNX Runtime {ort.__version__} cannot load CUDA's libraries; install them with: pip install "
            "'onnxruntime-gpu[cuda,cudnn]', or use --backend ort"
        )
    return session
