"""INT8 and FP8 as Q/DQ: what TensorRT takes, and what ONNX Runtime fuses into integer products (FP8 it only emulates).

    x → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← int8 or float8 weights

Activations have one scale per tensor, weights one per output channel, all zero points are 0 as TensorRT requires.
onnxruntime.quantization writes the same pattern but holds the model in memory, several times, and takes opset 23's
`Attention` for the operator of that name in its own domain; ModelOpt's ONNX path builds on it. Here weights are read
and written one at a time.

Every layer has a Q/DQ pair of its own, also where several read one value: ONNX Runtime turns the signed activations into
the unsigned ones its kernels want only for a `QuantizeLinear` with a single reader, and does not fuse the rest.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graphs.initializers import add_constant, lazy_constant
from ..activations import Activation
from .activation_ranges import RANGES
from .linear_layers import Linear
from .smoothquant import ALPHA, smooth, smoothing


@dataclass(frozen=True)
class Format:
    """What a number is stored in, and the largest it holds."""

    name: str
    dtype: ir.DataType
    largest: int

    def round(self, values: np.ndarray) -> np.ndarray:
        """The nearest numbers, those beyond the largest cut off."""
        values = np.clip(values, -self.largest, self.largest)
        return (np.rint(values) if self.dtype == ir.DataType.INT8 else values).astype(self.dtype.numpy())


INT8 = Format("int8", ir.DataType.INT8, 127)
FP8 = Format("fp8", ir.DataType.FLOAT8E4M3FN, 448)


def quantize(
    model: ir.Model,
    layers: Sequence[Linear],
    activations: Mapping[str, Activation],
    format: Format,
    ranges: str = "minmax",
    alpha: float | None = ALPHA,
) -> None:
    """Rewrite linear layers in place.

    Args:
        model: the stage's graph.
        layers: those to quantise.
        activations: of the layers' inputs, by name.
        format: INT8 or FP8.
        ranges: a key of `RANGES`.
        alpha: of SmoothQuant, how much of the activations' outliers the weights take over; None leaves them.
    """
    sharing: dict[str, list[Linear]] = defaultdict(list)
    for layer in layers:
        sharing[str(layer.input.name)].append(layer)
    for name, group in sharing.items():
        seen = activations[name]
        value, factor = group[0].input, np.ones(len(seen.largest), np.float32)
        if alpha is not None:
            factor = smoothing(seen.largest, group, alpha)
            value = smooth(model, group, factor)
        top = RANGES[ranges](seen.largest / factor, seen.rows / factor)
        for layer in group:
            _quantize_layer(model, layer, value, top, factor, format)
    RemoveUnusedNodesPass()(model)


def _quantize_layer(
    model: ir.Model, layer: Linear, value: ir.Value, top: float, factor: np.ndarray, format: Format
) -> None:
    """Give a layer a Q/DQ pair for `value`, whose stored numbers reach to `top`, and stored weights of diag(factor) · W."""
    kind = layer.dtype
    name, nodes = layer.name, []

    def node(op: str, inputs: list[ir.Value], suffix: str, kind: ir.DataType, **attributes: int) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=f"{name}.{suffix}")
        made.outputs[0].name, made.outputs[0].dtype = f"{name}.{suffix}.out", kind
        nodes.append(made)
        return made.outputs[0]

    # A range of zero, an input that was always 0, has no scale; any will do.
    scale = add_constant(
        model, ir.tensor(np.array(top / format.largest or 1.0, kind.numpy()), name=f"{name}.input.scale")
    )
    zero = add_constant(model, ir.tensor(np.zeros((), format.dtype.numpy()), name=f"{name}.input.zero"))
    quantised = node("QuantizeLinear", [value, scale, zero], "input.quantize", format.dtype)
    back = node("DequantizeLinear", [quantised, scale, zero], "input.dequantize", kind)

    scales = _weight_scales(layer, factor, format).astype(kind.numpy())
    columns = add_constant(model, ir.tensor(scales, name=f"{name}.weight.scale"))
    zeros = add_constant(model, ir.tensor(np.zeros(len(scales), format.dtype.numpy()), name=f"{name}.weight.zero"))

    def numbers() -> ir.TensorProtocol:
        return ir.tensor(format.round(layer.weight() * factor[:, None] / scales.astype(np.float32)), name=stored.name)

    stored = lazy_constant(model, f"{name}.weight.{format.name}", format.dtype, layer.shape, numbers)
    weight = node("DequantizeLinear", [stored, columns, zeros], "weight.dequantize", kind, axis=1)
    model.graph.insert_before(layer.node, nodes)
    layer.node.replace_input_with(0, back)
    layer.node.replace_input_with(1, weight)


def _weight_scales(layer: Linear, factor: np.ndarray, format: Format) -> np.ndarray:
    largest = np.abs(layer.finite_weight() * factor[:, None]).max(axis=0) / format.largest
    return np.where(largest > 0, largest, 1.0)
