"""ONNX Runtime on the first GPU (onnxruntime-gpu). Inputs and outputs are bound; the KV cache stays on the device."""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from .bundle import Bundle
from .errors import RedipruneError
from .gpu import compute_capability
from .session import cast_inputs

BACKEND, PROVIDER, DEVICE = "ort-cuda", "CUDAExecutionProvider", "cuda"


class OrtCudaStage:
    """A stage in ONNX Runtime CUDA."""

    batch = 8

    def __init__(self, bundle: Bundle, stage: str):
        self.spec = bundle.manifest.stages[stage]
        self.session = _session(bundle, stage)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        binding = self.session.io_binding()
        for name, array in cast_inputs(self.spec, inputs).items():
            binding.bind_cpu_input(name, array)  # ONNX Runtime brings it to where the graph wants it
        names = [port.name for port in self.spec.outputs]
        for name in names:
            binding.bind_output(name, DEVICE)
        self.session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))


class OrtCudaLanguage:
    """The language stage in ONNX Runtime CUDA."""

    def __init__(self, bundle: Bundle):
        spec = bundle.manifest.stages["language"]
        self.decoder = bundle.manifest.decoder
        self.session = _session(bundle, "language")
        self.dtype = np.dtype(spec.inputs[0].dtype)
        self.cache_names = [port.name.removeprefix("past.") for port in spec.inputs if port.name.startswith("past.")]

    def start(self, length: int) -> "OrtCudaDecoding":
        return OrtCudaDecoding(self, length)


class OrtCudaDecoding:
    """A KV cache on the device that ONNX Runtime writes in place: each tensor is bound as input and as output."""

    def __init__(self, language: OrtCudaLanguage, length: int):
        decoder, self.dtype = language.decoder, language.dtype
        self.session, self.length, self.position = language.session, length, 0
        self.binding = self.session.io_binding()
        empty = np.zeros((1, decoder.kv_heads, length, decoder.head_width), self.dtype)
        self.cache = [ort.OrtValue.ortvalue_from_numpy(empty, DEVICE, 0) for _ in language.cache_names]
        for name, value in zip(language.cache_names, self.cache, strict=True):
            self.binding.bind_ortvalue_input(f"past.{name}", value)
            self.binding.bind_ortvalue_output(f"present.{name}", value)
        self.logits = ort.OrtValue.ortvalue_from_numpy(np.empty((1, 1, decoder.vocabulary), self.dtype), DEVICE, 0)
        self.binding.bind_ortvalue_output("logits", self.logits)

    def step(self, embeds: np.ndarray) -> np.ndarray:
        tokens = embeds.shape[1]
        if self.position + tokens > self.length:
            raise RedipruneError(
                f"the KV cache has room for {self.length} positions, {self.position + tokens} are needed"
            )
        self.binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, self.dtype))
        self.binding.bind_cpu_input("write_index", np.array([self.position], np.int64))
        self.session.run_with_iobinding(self.binding)
        self.position += tokens
        return self.logits.numpy()[0, 0].astype(np.float32)


def open_stage(bundle: Bundle, stage: str, threads: int) -> OrtCudaStage:
    return OrtCudaStage(bundle, stage)


def open_language(bundle: Bundle, threads: int) -> OrtCudaLanguage:
    return OrtCudaLanguage(bundle)


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
    providers = [(PROVIDER, {"use_tf32": "0"}), "CPUExecutionProvider"]
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
