"""A graph's initialisers become weights: a place in the checkpoint's own file, or a copy that is read at the saving."""

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .weight_files import StoredTensor

# What safetensors calls the types that weights may have, and what ONNX calls them.
WEIGHT_TYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
_ONNX = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}


def copied(stored: StoredTensor, dtype: torch.dtype, name: str, transpose: bool = False) -> ir.LazyTensor:
    """A weight that is read and converted when the graph is saved."""
    shape = stored.shape[::-1] if transpose else stored.shape

    def read() -> ir.TensorProtocol:
        tensor = stored.load().to(dtype)
        return ir.tensor((tensor.T if transpose else tensor).contiguous().numpy(), name=name)

    lazy = ir.LazyTensor(read, dtype=_ONNX[dtype], shape=ir.Shape(shape), name=name)
    lazy.meta["stored"] = (stored, dtype)
    return lazy


def refer(graph: ir.Graph, value: ir.Value, stored: StoredTensor, dtype: torch.dtype, place: str) -> None:
    """Let an initialiser be a weight's own bytes; its users get it through a Cast where the type differs."""
    name, kind, shape = str(value.name), WEIGHT_TYPES[stored.dtype], ir.Shape(stored.shape)
    tensor = ir.ExternalTensor(
        f"{place}/{stored.file.name}", stored.offset, stored.length, kind, shape=shape, name=name
    )
    if kind == _ONNX[dtype]:
        value.const_value = tensor
        return
    raw = ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)
    value.replace_all_uses_with(raw)
    graph.initializers.pop(name)
    graph.register_initializer(raw)
    users = raw.uses()
    if all(node.op_type == "Gather" and index == 0 for node, index in users):
        for node, _ in users:  # a table: the rows that are looked up are converted, not all of it
            (rows,) = node.outputs
            cast = _cast(rows, value, str(rows.name))
            rows.name, rows.type = f"{rows.name}.stored", raw.type
            graph.insert_after(node, cast)
    else:
        # Beside its first use: run as written, a graph then holds one converted weight at a time.
        first = next(node for node in graph if node in {user for user, _ in users})
        cast = _cast(raw, value, f"{name}.converted")
        graph.insert_before(first, cast)


def _cast(value: ir.Value, like: ir.Value, name: str) -> ir.Node:
    """A Cast through which all users of `value` get it in the type of `like`."""
    assert like.dtype is not None
    converted = ir.Value(name=name, type=like.type, shape=value.shape)
    value.replace_all_uses_with(converted, replace_graph_outputs=True)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", like.dtype)], outputs=[converted], name=f"{name}.cast")


def fold_transposes(model: ir.Model) -> None:
    """Store the weights of linear layers the way MatMul reads them, so that no engine transposes them at load."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        tensor = source.const_value
        if not (isinstance(tensor, ir.LazyTensor) and "stored" in tensor.meta and len(tensor.shape) == 2):
            continue
        stored, dtype = tensor.meta["stored"]
        name = f"{source.name}.T"
        if name not in graph.initializers:
            folded = copied(stored, dtype, name, transpose=True)
            graph.register_initializer(ir.Value(name=name, type=source.type, shape=folded.shape, const_value=folded))
        value = graph.initializers[name]
        result.replace_all_uses_with(value)
    RemoveUnusedNodesPass()(model)
