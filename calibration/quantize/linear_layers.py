"""The linear layers of a stage's graph: found by their structure, read one weight at a time."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.errors import RedipruneError

# What may stand between a stored weight and its product: zero-copy graphs convert and transpose it there.
_VIEWS = ("Cast", "Transpose")


@dataclass(frozen=True)
class LinearLayer:
    """One product of activations with a constant matrix: y = x · W, x [..., in], W [in, out].

    Attributes:
        name: the parameter's, without ".weight", e.g. "decoder.layers.0.mlp.down_proj".
        node: the MatMul.
        stored: W as the graph holds it, or its transpose.
        transposed: whether `stored` is [out, in].
    """

    name: str
    node: ir.Node
    stored: ir.TensorProtocol
    transposed: bool

    @property
    def input(self) -> ir.Value:
        """x, the activation that the layer reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out), whichever way the weight is stored."""
        rows, columns = self.stored.shape.numpy()
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> ir.DataType:
        """The data type in which the product is computed."""
        matrix = self.node.inputs[1]
        assert matrix is not None
        return matrix.dtype or self.stored.dtype

    def weight(self) -> np.ndarray:
        """Read W [in, out] as float32, from disk; the node may have been given another weight since."""
        matrix = self.stored.numpy()
        weight = (matrix.T if self.transposed else matrix).astype(np.float32, order="C")
        if isinstance(self.stored, ir.ExternalTensor):
            del matrix
            self.stored.release()  # the pages of a mapped file would count as this process's memory
        return weight

    def finite_weight(self) -> np.ndarray:
        """Read W [in, out] as float32 and check it.

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


def linear_layers(model: ir.Model) -> list[LinearLayer]:
    """Find every MatMul with a constant matrix, in the order of the graph."""
    layers = []
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        value, transposed = _stored_weight(node.inputs[1])
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 2:
            name = str(value.name).removesuffix(".T").removesuffix(".weight")
            layers.append(LinearLayer(name, node, value.const_value, transposed))
    return layers


def _stored_weight(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The initialiser behind a value and whether the views between transpose it; None where it is computed."""
    transposed = False
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _VIEWS:
            return None, False
        transposed ^= node.op_type == "Transpose"
        value = node.inputs[0]
    return value, transposed
