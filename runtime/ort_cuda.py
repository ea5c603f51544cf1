"""ONNX Runtime on the first GPU (onnxruntime-gpu). Inputs and outputs are bound; the KV cache stays on the device."""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from .bundle import Bundle
from .errors import RedipruneError
from .gpu import compute_capability
from .ort import OrtLanguage
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


def open_stage(bundle: Bundle, stage: str, threads: int) -> OrtCudaStage:
    return OrtCudaStage(bundle, stage)


def open_language(bundle: Bundle, threads: int) -> OrtLanguage:
    return OrtLanguage(bundle, _session(bundle, "language"), DEVICE)


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
