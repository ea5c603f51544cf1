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
        model.opset_imports["com.microsoft"] = 1
        products = _Products(model)
        for layer in layers:
            products.replace(layer)


class _Products:
    """Puts `(rows · weights) · magnitudes` in place of products, one after another in the order of the graph."""

    def __init__(self, model: ir.Model):
        def constant(name: str, value: np.ndarray | np.generic) -> ir.Value:
            return add_constant(model, ir.tensor(np.asarray(value), name=f"int8.{name}"))

        self._model = model
        self._last_axis = constant("last_axis", np.array([-1]))
        self._least = constant("least", np.float32(1e-30))  # a row of zeros has a magnitude too
        self._step = constant("step", np.float32(1 / 127))
        self._row_zero = constant("row_zero", np.uint8(_ZERO))
        self._rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # input → its integers, its rows' magnitudes
        self._results: set[ir.Value] = set()  # each a product · its rows' magnitudes

    def replace(self, layer: LinearLayer) -> None:
        """Replace the layer's MatMul."""
        if layer.input not in self._rows:
            self._rows[layer.input] = self._quantise_rows(layer)
        rows, magnitudes = self._rows[layer.input]
        model, scales = self._model, channel_scales(layer.finite_weight(), _LARGEST)

        def stored_numbers() -> ir.TensorProtocol:
            return ir.tensor(round_to_channels(layer.weight(), scales), name=weight.name)

        weight = lazy_constant(model, f"{layer.name}.weight.int8", ir.DataType.INT8, layer.shape, stored_numbers)
        scale = add_constant(model, ir.tensor(scales, name=f"{layer.name}.weight.scale"))
        product = ir.node(
            "MatMulIntegerToFloat", [rows, weight, self._step, scale, self._row_zero], domain="com.microsoft"
        )
        result = ir.node("Mul", [product.outputs[0], magnitudes])
        old, (new,) = layer.node.outputs[0], result.outputs
        new.name, new.type, new.shape = old.name, old.type, old.shape
        model.graph.insert_before(layer.node, [product, result])
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(layer.node, safe=True)
        self._results.add(new)

    def _quantise_rows(self, layer: LinearLayer) -> tuple[ir.Value, ir.Value]:
        """x [..., in] → uint8 [..., in] of steps of 1 / 127 of its rows' largest magnitudes, and these [..., 1]."""
        postponed, x = self._without_magnitudes(layer), layer.input
        absolute = ir.node("Abs", [x])
        largest = ir.node("ReduceMax", [absolute.outputs[0], self._last_axis], {"keepdims": 1})
        bounded = ir.node("Max", [largest.outputs[0], self._least])
        inverse = ir.node("Reciprocal", [bounded.outputs[0]])
        normed = ir.node("Mul", [x, inverse.outputs[0]])  # −1 … 1
        # QuantizeLinear has no scale per row for any number of axes; multiplying first works, and is faster.
        quantised = ir.node("QuantizeLinear", [normed.outputs[0], self._step, self._row_zero])
        self._model.graph.insert_before(layer.node, [absolute, largest, bounded, inverse, normed, quantised])
        if postponed is None:
            return quantised.outputs[0], bounded.outputs[0]
        magnitudes = ir.node("Mul", [bounded.outputs[0], postponed])
        self._model.graph.insert_before(layer.node, magnitudes)
        return quantised.outputs[0], magnitudes.outputs[0]

    def _without_magnitudes(self, layer: LinearLayer) -> ir.Value | None:
        """Take the rows' magnitudes out of a layer's input that is `a · result`, as behind a gated activation.

        A row's scale changes nothing of its integers: it may as well be multiplied by where it is one number a row.

        Returns:
            The magnitudes [..., 1] that are to be multiplied by later; None where the input is none of that kind.
        """
        node = layer.input.producer()
        if node is None or node.op_type != "Mul" or len(layer.input.uses()) > 1 or layer.input.is_graph_output():
            return None
        for at, factor in enumerate(node.inputs):
            scaling = None if factor is None else factor.producer()
            if factor in self._results and scaling and len(factor.uses()) == 1 and not factor.is_graph_output():
                product, magnitudes = scaling.inputs
                node.replace_input_with(at, product)
                self._model.graph.remove(scaling, safe=True)
                return magnitudes
        return None


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
