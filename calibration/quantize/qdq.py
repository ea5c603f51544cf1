"""INT8 and FP8 as Q/DQ: what TensorRT takes, and what ONNX Runtime fuses into integer products (FP8 it only emulates).

    x → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← int8 or float8 weights

Activations have one scale per tensor, weights one per output channel, all zero points are 0 as TensorRT requires.
onnxruntime.quantization writes the same pattern (a test compares them number by number) but holds the model in memory,
several times, and takes opset 23's `Attention` for the operator of that name in its own domain; ModelOpt's ONNX path
builds on it. Here weights are read and written one at a time.

Every layer has a Q/DQ pair of its own, also where several read one value: ONNX Runtime turns the signed activations into
the unsigned ones its kernels want only for a `QuantizeLinear` with a single reader, and does not fuse the rest.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graphs.initializers import add_constant, lazy_constant
from .activation_ranges import RANGES, Activation
from .linear_layer_pass import LinearLayerPass, UnsuitableGraphError
from .linear_layers import LinearLayer
from .smoothquant import divide_input, smoothing_factors


@dataclass(frozen=True)
class NumberFormat:
    """What a quantised number is stored in.

    Attributes:
        name: part of the stored tensors' names.
        dtype: of the stored tensors.
        largest: the largest magnitude that a scale is made for.
    """

    name: str
    dtype: ir.DataType
    largest: int

    def round(self, values: np.ndarray) -> np.ndarray:
        """Round to the nearest representable numbers; what lies beyond the largest is cut off."""
        values = np.clip(values, -self.largest, self.largest)
        return (np.rint(values) if self.dtype == ir.DataType.INT8 else values).astype(self.dtype.numpy())


INT8 = NumberFormat("int8", ir.DataType.INT8, 127)
FP8 = NumberFormat("fp8", ir.DataType.FLOAT8E4M3FN, 448)


class QdqPass(LinearLayerPass):
    """Give linear layers quantised inputs and weights, as Q/DQ.

    requires: the activations of every layer's input are known.
    ensures: as every `LinearLayerPass`.
    """

    def __init__(
        self,
        number_format: NumberFormat,
        activations: Mapping[str, Activation],
        *,
        ranges: str = "minmax",
        smoothing: float | None = None,
        layer_names: Collection[str] | None = None,
    ):
        """Set up the pass.

        Args:
            number_format: INT8 or FP8.
            activations: by name of a layer's input.
            ranges: a key of `RANGES`: which magnitude the largest integer of an activation stands for.
            smoothing: SmoothQuant's migration strength in [0, 1]; None does without.
            layer_names: the layers to rewrite; None is all.
        """
        super().__init__(layer_names)
        self.number_format, self.activations = number_format, activations
        self.ranges, self.smoothing = ranges, smoothing

    def requires(self, model: ir.Model) -> None:
        """See the class.

        Raises:
            UnsuitableGraphError: a layer that no sample reached.
        """
        super().requires(model)
        for layer in self.layers(model):
            if layer.input.name not in self.activations:
                raise UnsuitableGraphError(
                    f"no sample reached layer '{layer.name}', so its input has no range; give other samples, or leave the "
                    "layer out"
                )

    def rewrite(self, model: ir.Model, layers: Sequence[LinearLayer]) -> None:
        """Quantise the layers, those that share an input together: they share its range and its smoothing."""
        sharing: dict[str, list[LinearLayer]] = defaultdict(list)
        for layer in layers:
            sharing[str(layer.input.name)].append(layer)
        for name, group in sharing.items():
            seen = self.activations[name]
            value, factors = group[0].input, np.ones(len(seen.largest), np.float32)
            if self.smoothing is not None:
                factors = smoothing_factors(seen.largest, group, self.smoothing)
                value = divide_input(model, group, factors)
            top = RANGES[self.ranges](seen.largest / factors, seen.rows / factors)
            for layer in group:
                quantised_input = _quantise_input(model, layer, value, top, self.number_format)
                weight = _quantise_weight(model, layer, factors, self.number_format)
                layer.node.replace_input_with(0, quantised_input)
                layer.node.replace_input_with(1, weight)


def _quantise_input(
    model: ir.Model, layer: LinearLayer, value: ir.Value, top: float, number_format: NumberFormat
) -> ir.Value:
    """A Q/DQ pair of the layer's own for `value`, whose stored numbers reach to `top`."""
    dtype = layer.dtype
    # A range of zero, an input that was always 0, has no scale; any will do.
    step = np.array(top / number_format.largest or 1.0, dtype.numpy())
    scale = add_constant(model, ir.tensor(step, name=f"{layer.name}.input.scale"))
    zero = add_constant(model, ir.tensor(np.zeros((), number_format.dtype.numpy()), name=f"{layer.name}.input.zero"))
    quantise = ir.node("QuantizeLinear", [value, scale, zero])
    quantised = _named(quantise, f"{layer.name}.input.quantize", number_format.dtype)
    dequantise = ir.node("DequantizeLinear", [quantised, scale, zero])
    restored = _named(dequantise, f"{layer.name}.input.dequantize", dtype)
    model.graph.insert_before(layer.node, [quantise, dequantise])
    return restored


def _quantise_weight(model: ir.Model, layer: LinearLayer, factors: np.ndarray, number_format: NumberFormat) -> ir.Value:
    """Stored weights of diag(factors) · W [in, out] with a scale per output, and their dequantisation."""
    scales = _weight_scales(layer, factors, number_format).astype(layer.dtype.numpy())

    def stored_numbers() -> ir.TensorProtocol:
        weight = layer.weight() * factors[:, None]
        return ir.tensor(number_format.round(weight / scales.astype(np.float32)), name=stored.name)

    scale = add_constant(model, ir.tensor(scales, name=f"{layer.name}.weight.scale"))
    zeros = np.zeros(len(scales), number_format.dtype.numpy())
    zero = add_constant(model, ir.tensor(zeros, name=f"{layer.name}.weight.zero"))
    name = f"{layer.name}.weight.{number_format.name}"
    stored = lazy_constant(model, name, number_format.dtype, layer.shape, stored_numbers)
    dequantise = ir.node("DequantizeLinear", [stored, scale, zero], {"axis": 1})
    restored = _named(dequantise, f"{layer.name}.weight.dequantize", layer.dtype)
    model.graph.insert_before(layer.node, dequantise)
    return restored


def _weight_scales(layer: LinearLayer, factors: np.ndarray, number_format: NumberFormat) -> np.ndarray:
    """Scales [out] that reach each output's largest magnitude with the format's largest number; 1 for zeros."""
    largest = np.abs(layer.finite_weight() * factors[:, None]).max(axis=0) / number_format.largest
    return np.where(largest > 0, largest, 1.0)


def _named(node: ir.Node, name: str, dtype: ir.DataType) -> ir.Value:
    node.name = name
    (output,) = node.outputs
    output.name, output.dtype = f"{name}.out", dtype
    return output
