"""INT8 as Q/DQ: what TensorRT takes, and what ONNX Runtime fuses into integer products.

    x → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← int8 weights

Activations have one scale per tensor, weights one per output channel, all zero points are 0 as TensorRT requires.
onnxruntime.quantization writes the same pattern but holds the model in memory, several times, and takes opset 23's
`Attention` for the operator of that name in its own domain; ModelOpt's ONNX path builds on it. Here weights are read
and written one at a time.

Every layer has a Q/DQ pair of its own, also where several read one value: ONNX Runtime turns the signed activations into
the unsigned ones its kernels want only for a `QuantizeLinear` with a single reader, and does not fuse the rest.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .activations import Activation
from .layers import Linear, add_constant, lazy_constant
from .ranges import RANGES
from .smooth import ALPHA, smooth, smoothing

LARGEST = 127


def quantize(
    model: ir.Model,
    layers: Sequence[Linear],
    activations: Mapping[str, Activation],
    ranges: str = "minmax",
    alpha: float | None = ALPHA,
) -> None:
    """Rewrite linear layers in place.

    Args:
        model: the stage's graph.
        layers: those to quantise.
        activations: of the layers' inputs, by name.
        ranges: a key of `RANGES`.
        alpha: how much of the activations' outliers the weights take over; None leaves them.
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
            _quantize_layer(model, layer, value, top, factor)
    RemoveUnusedNodesPass()(model)


def _quantize_layer(model: ir.Model, layer: Linear, value: ir.Value, top: float, factor: np.ndarray) -> None:
    """Give a layer a Q/DQ pair for `value`, whose integers reach to `top`, and int8 weights of diag(factor) · W."""
    kind = ir.DataType.FLOAT if value.dtype is None else value.dtype
    name, nodes = layer.name, []

    def node(op: str, inputs: list[ir.Value], suffix: str, kind: ir.DataType, **attributes: int) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=f"{name}.{suffix}")
        made.outputs[0].name, made.outputs[0].dtype = f"{name}.{suffix}.out", kind
        nodes.append(made)
        return made.outputs[0]

    # A range of zero, an input that was always 0, has no scale; any will do.
    scale = add_constant(model, ir.tensor(np.array(top / LARGEST or 1.0, kind.numpy()), name=f"{name}.input.scale"))
    zero = add_constant(model, ir.tensor(np.int8(0), name=f"{name}.input.zero"))
    quantised = node("QuantizeLinear", [value, scale, zero], "input.quantize", ir.DataType.INT8)
    back = node("DequantizeLinear", [quantised, scale, zero], "input.dequantize", kind)

    scales = _weight_scales(layer, factor).astype(kind.numpy())
    columns = add_constant(model, ir.tensor(scales, name=f"{name}.weight.scale"))
    zeros = add_constant(model, ir.tensor(np.zeros(len(scales), np.int8), name=f"{name}.weight.zero"))

    def integers() -> ir.TensorProtocol:
        weight = layer.weight() * factor[:, None] / scales.astype(np.float32)
        return ir.tensor(np.clip(np.rint(weight), -LARGEST, LARGEST).astype(np.int8), name=f"{name}.weight.int8")

    stored = lazy_constant(model, f"{name}.weight.int8", ir.DataType.INT8, layer.shape, integers)
    weight = node("DequantizeLinear", [stored, columns, zeros], "weight.dequantize", kind, axis=1)
    model.graph.insert_before(layer.node, nodes)
    layer.node.replace_input_with(0, back)
    layer.node.replace_input_with(1, weight)


def _weight_scales(layer: Linear, factor: np.ndarray) -> np.ndarray:
    largest = np.abs(layer.weight() * factor[:, None]).max(axis=0) / LARGEST
    return np.where(largest > 0, largest, 1.0)
