"""The linear layers of a stage's graph: what quantisation replaces, found and read without loading the rest."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

# What may stand between a stored weight and its product: zero-copy graphs convert and turn it there.
_VIEWS = ("Cast", "Transpose")


@dataclass(frozen=True)
class Linear:
    """One product of activations with a constant matrix: y = x · W, x [..., in], W [in, out]."""

    name: str  # the parameter's, without ".weight": "decoder.layers.0.mlp.down_proj"
    node: ir.Node  # the MatMul

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)"""
        stored, views = _stored(self.node.inputs[1])
        rows, columns = _sizes(_tensor(stored))
        turned = sum(view.op_type == "Transpose" for view in views) % 2
        return (columns, rows) if turned else (rows, columns)

    def weight(self) -> np.ndarray:
        """W [in, out] float32, read now."""
        stored, views = _stored(self.node.inputs[1])
        matrix = _tensor(stored).numpy().astype(np.float32)
        for view in views:
            matrix = matrix.T if view.op_type == "Transpose" else matrix
        return np.ascontiguousarray(matrix)


def linear_layers(model: ir.Model) -> list[Linear]:
    """Every MatMul with a constant matrix, in the order of the graph."""
    layers = []
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        stored, _ = _stored(node.inputs[1])
        if stored is not None and len(_tensor(stored).shape) == 2:
            layers.append(Linear(str(stored.name).removesuffix(".T").removesuffix(".weight"), node))
    return layers


def add_constant(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor, named, as an initialiser of the graph."""
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(_sizes(tensor)), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def lazy_constant(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], ir.TensorProtocol]
) -> ir.Value:
    """An initialiser computed only when the model is saved, so that one at a time is in memory."""
    return add_constant(model, ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=name))


def _stored(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """The initialiser behind a value, with the views between in the order they are applied; None if it is computed."""
    views: list[ir.Node] = []
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _VIEWS:
            return None, []
        views.insert(0, node)
        value = node.inputs[0]
    return value, views


def _sizes(tensor: ir.TensorProtocol) -> list[int]:
    return list(tensor.shape.numpy())


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None and value.const_value is not None
    return value.const_value
