"""The linear layers of a stage's graph: what quantisation replaces, found and read without loading the rest."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.errors import RedipruneError

# What may stand between a stored weight and its product: zero-copy graphs convert and turn it there.
_VIEWS = ("Cast", "Transpose")


@dataclass(frozen=True)
class Linear:
    """One product of activations with a constant matrix: y = x · W, x [..., in], W [in, out]."""

    name: str  # the parameter's, without ".weight": "decoder.layers.0.mlp.down_proj"
    node: ir.Node  # the MatMul
    stored: ir.TensorProtocol  # W, or its transpose, as the graph holds it
    turned: bool

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)"""
        rows, columns = _sizes(self.stored)
        return (columns, rows) if self.turned else (rows, columns)

    @property
    def dtype(self) -> ir.DataType:
        """In which the product is computed."""
        matrix = self.node.inputs[1]
        assert matrix is not None
        return matrix.dtype or self.stored.dtype

    def weight(self) -> np.ndarray:
        """W [in, out] float32, read now. The node may have got another weight since."""
        matrix = self.stored.numpy()
        weight = (matrix.T if self.turned else matrix).astype(np.float32, order="C")
        if isinstance(self.stored, ir.ExternalTensor):
            del matrix
            self.stored.release()  # the pages of a mapped file would count as this process's memory
        return weight

    def finite_weight(self) -> np.ndarray:
        """`weight()`.

        Raises:
            RedipruneError: it holds an infinity or NaN, which no scale can represent.
        """
        weight = self.weight()
        if not np.isfinite(weight.sum(dtype=np.float64)):
            raise RedipruneError(
                f"the weight of layer '{self.name}' has infinite or NaN entries and cannot be quantised; "
                "export the bundle again from an undamaged checkpoint"
            )
        return weight


def linear_layers(model: ir.Model) -> list[Linear]:
    """Every MatMul with a constant matrix, in the order of the graph."""
    layers = []
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        value, turned = _behind(node.inputs[1])
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 2:
            name = str(value.name).removesuffix(".T").removesuffix(".weight")
            layers.append(Linear(name, node, value.const_value, turned))
    return layers


def _behind(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The initialiser behind a value, and whether the views between transpose it; None if it is computed."""
    turned = False
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _VIEWS:
            return None, False
        turned ^= node.op_type == "Transpose"
        value = node.inputs[0]
    return value, turned


def _sizes(tensor: ir.TensorProtocol) -> list[int]:
    return list(tensor.shape.numpy())
