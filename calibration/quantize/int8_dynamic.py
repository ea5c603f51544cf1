"""Dynamic INT8 of linear layers for ONNX Runtime on CPUs: per-token activation scales, per-channel weights, symmetric.

Each token's row is scaled by its own largest magnitude, so that a row far larger than the others (an attention sink)
costs them nothing; `DynamicQuantizeMatMul`, which ONNX Runtime's own quantiser writes, has one scale for all rows.

Activations are uint8 around zero point 128, weights int8 without a zero point. On x86 CPUs with VNNI this product is the
fastest that ONNX Runtime has, two and a half times that of uint8 with uint8 and twenty times that of int8 with int8.
Where it saturates in 16 bits, on x86 CPUs without VNNI, `runtime.backends.ort` has the weights made unsigned as the
graph is loaded, which is exact.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...graphs.initializers import add_constant, lazy_constant
from .linear_layer_pass import LinearLayerPass, UnsuitableGraphError
from .linear_layers import LinearLayer

_ZERO = 128  # of activations, uint8
_LARGEST = 127  # of weights, int8


class DynamicInt8Pass(LinearLayerPass):
    """Replace linear layers by INT8 products; layers that share an input share its quantisation.

    requires: every layer is computed in float32.
    ensures: as every `LinearLayerPass`.
    """

    def requires(self, model: ir.Model) -> None:
        """See the class.

        Raises:
            UnsuitableGraphError: a layer is not float32.
        """
        super().requires(model)
        for layer in self.layers(model):
            if layer.dtype != ir.DataType.FLOAT:
                raise UnsuitableGraphError(
                    f"layer '{layer.name}' is computed in {layer.dtype.name.lower()}; dynamic int8 is made from an fp32 "
                    "bundle: export one with --precision fp32"
                )

    def rewrite(self, model: ir.Model, layers: Sequence[LinearLayer]) -> None:
        """Replace the products.

        Raises:
            RedipruneError: a weight is not finite; the graph is then half rewritten.
        """
        constants = _Constants(model)
        model.opset_imports["com.microsoft"] = 1
        rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # input → its integers, its scales
        for layer in layers:
            if layer.input not in rows:
                rows[layer.input] = _quantise_rows(model, layer, constants)
            _replace_product(model, layer, *rows[layer.input], constants)


class _Constants:
    """Initialisers that all layers share."""

    def __init__(self, model: ir.Model):
        def constant(name: str, value: np.ndarray | np.generic) -> ir.Value:
            return add_constant(model, ir.tensor(np.asarray(value), name=f"int8.{name}"))

        self.last_axis = constant("last_axis", np.array([-1]))
        self.least = constant("least", np.float32(1e-30))  # a row of zeros has a scale too
        self.step = constant("step", np.float32(1 / 127))
        self.one = constant("one", np.float32(1))
        self.row_zero = constant("row_zero", np.uint8(_ZERO))


def _quantise_rows(model: ir.Model, layer: LinearLayer, constants: _Constants) -> tuple[ir.Value, ir.Value]:
    """x [..., in] → uint8 [..., in], and its scales [..., 1]."""
    x = layer.input
    magnitude = ir.node("Abs", [x])
    largest = ir.node("ReduceMax", [magnitude.outputs[0], constants.last_axis], {"keepdims": 1})
    bounded = ir.node("Max", [largest.outputs[0], constants.least])
    scale = ir.node("Mul", [bounded.outputs[0], constants.step])
    scaled = ir.node("Div", [x, scale.outputs[0]])
    # QuantizeLinear has no scale per row for any number of axes; dividing first works, and is faster.
    quantised = ir.node("QuantizeLinear", [scaled.outputs[0], constants.one, constants.row_zero])
    model.graph.insert_before(layer.node, [magnitude, largest, bounded, scale, scaled, quantised])
    return quantised.outputs[0], scale.outputs[0]


def _replace_product(
    model: ir.Model, layer: LinearLayer, rows: ir.Value, row_scales: ir.Value, constants: _Constants
) -> None:
    """Put `(rows · weights) · row_scales` in place of the layer's MatMul."""
    scales = channel_scales(layer.finite_weight(), _LARGEST)

    def stored_numbers() -> ir.TensorProtocol:
        return ir.tensor(round_to_channels(layer.weight(), scales), name=weight.name)

    weight = lazy_constant(model, f"{layer.name}.weight.int8", ir.DataType.INT8, layer.shape, stored_numbers)
    scale = add_constant(model, ir.tensor(scales, name=f"{layer.name}.weight.scale"))
    product = ir.node(
        "MatMulIntegerToFloat",
        [rows, weight, constants.one, scale, constants.row_zero],
        domain="com.microsoft",
    )
    result = ir.node("Mul", [product.outputs[0], row_scales])
    old, (new,) = layer.node.outputs[0], result.outputs
    new.name, new.type, new.shape = old.name, old.type, old.shape
    model.graph.insert_before(layer.node, [product, result])
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove(layer.node, safe=True)


def channel_scales(weight: np.ndarray, largest: int) -> np.ndarray:
    """Scales [out] float32 that reach each output's largest magnitude with `largest`; 1 where all are zero.

    Args:
        weight: [in, out] float32.
        largest: the largest integer.
    """
    scales = np.maximum(weight.max(axis=0), -weight.min(axis=0)) / np.float32(largest)
    return np.where(scales > 0, scales, np.float32(1))


def round_to_channels(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Round a weight [in, out] to the nearest multiples of its scales [out]: int8 [in, out]."""
    values = weight / scales
    return np.rint(values, out=values).astype(np.int8)
