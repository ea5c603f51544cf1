"""Constants of a graph: those that a rewrite adds, and which values are computed from constants alone."""

from collections.abc import Callable

import onnx_ir as ir


def add_constant(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a named tensor to a graph as an initialiser.

    Args:
        model: changed in place.
        tensor: its name is the initialiser's, and must not be taken in the graph.

    Returns:
        The value to use as a node's input.
    """
    shape = ir.Shape(list(tensor.shape.numpy()))
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def lazy_constant(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], ir.TensorProtocol]
) -> ir.Value:
    """Add an initialiser that is computed only when the model is saved, so that one at a time is in memory.

    Args:
        model: changed in place.
        name: of the initialiser, not taken in the graph.
        dtype, shape: of what `compute` gives.
        compute: called at every use; its result is not kept.

    Returns:
        The value to use as a node's input.
    """
    return add_constant(model, ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=name))


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initialiser or computed from initialisers alone, as a weight that is stored in another type."""
    waiting, seen = [value], {value}  # not recursive: a decoder's values depend on one another through all its layers
    while waiting:
        source = waiting.pop()
        node = source.producer()
        if node is None and source.const_value is None:
            return False
        new = {each for each in (node.inputs if node is not None else ()) if each is not None and each not in seen}
        seen |= new
        waiting += new
    return True
