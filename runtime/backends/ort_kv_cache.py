"""The decoder in ONNX Runtime and the KV cache of one request, bound in place (`ort_batch`: of many)."""

from typing import Any

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle
from .arrays import Array
from .language_inputs import LanguageInputs
from .session import check_cache_room


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
        check_cache_room(self.length, self.position + tokens)
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
