"""Quantization schemes: the ways to store and compute the linear layers of a stage, and the pass that makes each."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from .activation_ranges import Activation
from .block_weights import Int4WeightPass, Int8WeightPass
from .float16 import HalfPrecisionPass
from .int8_dynamic import DynamicInt8Pass
from .qdq import FP8, INT8, QdqPass


@dataclass(frozen=True)
class PassInputs:
    """What a scheme's pass may be made from.

    Attributes:
        activations: of the inputs of linear layers, by name; {} where the scheme does without.
        ranges: a key of `activation_ranges.RANGES`.
        smoothing: SmoothQuant's migration strength; None does without.
        layer_names: the layers to quantise; None is all. Schemes that take a whole stage ignore it.
    """

    activations: Mapping[str, Activation] = field(default_factory=dict)
    ranges: str = "minmax"
    smoothing: float | None = None
    layer_names: Collection[str] | None = None


@dataclass(frozen=True)
class Scheme:
    """A way to store and compute the linear layers of a stage.

    Attributes:
        summary: what it is, in a few words.
        make_pass: the pass that puts a stage's graph in the scheme.
        activations: "needed" where it cannot be made without, "used" where they make it better, "" where it ignores them.
        refused: backend → why it does not take the scheme.
        min_compute_capability: of GPUs whose TensorRT takes it, e.g. "sm_89".
        requires_fp32: whether only an fp32 bundle can be put in it.
        per_layer: whether single layers can be left out.
    """

    summary: str
    make_pass: Callable[[PassInputs], ir.passes.InPlacePass]
    activations: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    min_compute_capability: str | None = None
    requires_fp32: bool = False
    per_layer: bool = True


def _int8(given: PassInputs) -> QdqPass:
    return QdqPass(
        INT8,
        given.activations,
        ranges=given.ranges,
        smoothing=given.smoothing,
        layer_names=given.layer_names,
    )


def _fp8(given: PassInputs) -> QdqPass:
    # Its exponents hold the outliers that ranges would cut and smoothing would move.
    return QdqPass(FP8, given.activations, layer_names=given.layer_names)


def _int4(given: PassInputs) -> Int4WeightPass:
    samples = {name: seen.rows for name, seen in given.activations.items()}
    return Int4WeightPass(samples, layer_names=given.layer_names)


_CPU_ONLY = "its operators are ONNX Runtime's own for CPUs; choose int8"
_NO_INT8_BLOCKS = "of weights in blocks it reads INT4 only; choose int8 or int4"
_NO_BF16 = "it has no bf16 products; choose fp16"

SCHEMES = {
    "int8": Scheme("static INT8 Q/DQ, one scale per activation tensor and per output channel", _int8, "needed"),
    "int8-dynamic": Scheme(
        "INT8 with a scale for each token, computed when the engine runs",
        lambda given: DynamicInt8Pass(layer_names=given.layer_names),
        refused=dict.fromkeys(("tensorrt", "tensorrt-rtx", "ort-cuda", "openvino"), _CPU_ONLY),
        requires_fp32=True,
    ),
    "fp8": Scheme(
        "static FP8 (E4M3) Q/DQ; ONNX Runtime emulates it, slower than fp32",
        _fp8,
        "needed",
        min_compute_capability="sm_89",
    ),
    "int8-weights": Scheme(
        "INT8 weights in blocks of 16 to 128 inputs; products in the bundle's precision",
        lambda given: Int8WeightPass(layer_names=given.layer_names),
        refused=dict.fromkeys(("tensorrt", "tensorrt-rtx"), _NO_INT8_BLOCKS),
    ),
    "int4": Scheme(
        "INT4 weights in blocks of 16 to 128 inputs; products in the bundle's precision",
        _int4,
        "used",
        min_compute_capability="sm_80",
    ),
    "fp16": Scheme(
        "half precision; norms, softmax and positions in fp32",
        lambda given: HalfPrecisionPass(ir.DataType.FLOAT16),
        requires_fp32=True,
        per_layer=False,
    ),
    "bf16": Scheme(
        "bfloat16; norms, softmax and positions in fp32",
        lambda given: HalfPrecisionPass(ir.DataType.BFLOAT16),
        refused=dict.fromkeys(("ort", "ort-cuda", "openvino"), _NO_BF16),
        min_compute_capability="sm_80",
        requires_fp32=True,
        per_layer=False,
    ),
}
