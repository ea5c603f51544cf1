"""Constants that rewriting adds to a graph."""

from collections.abc import Callable

import onnx_ir as ir


def add_constant(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor, named, as an initialiser of the graph."""
    shape = ir.Shape(list(tensor.shape.numpy()))
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def lazy_constant(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], ir.TensorProtocol]
) -> ir.Value:
    """An initialiser computed only when the model is saved, so that one at a time is in memory."""
    return add_constant(model, ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=name))
