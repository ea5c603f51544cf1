"""Which parts of a half-precision graph stay in float32, and a check that nothing else has.

Islands are norms (from the squares to the scaled result), softmaxes, and the angles of positions with their sines,
cosines and rotations. A norm is found by its operators, so one that an exporter writes otherwise might be half missed:
`check_precisions` therefore compares every island with a list of those that are known, and refuses a graph in which an
island, or an operator in half precision, is not on the lists.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from .linear_layer_pass import UnsuitableGraphError
from .smoothquant import is_learned_vector

_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"}
_NORMS = {"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "Softmax"}
_NORM_PARTS = {"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal", "Exp"}
_ANGLES = {"Cos", "Sin", "Range"}
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}

# Operators that may compute in half: products, whose sums ONNX Runtime and TensorRT take in float32, and what adds,
# gates or moves their results. Activation functions are here because their outputs are bounded or no larger than x.
_HALF = _PRODUCTS | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Where", "Clip", "Sigmoid", "Tanh", "Erf", "Gelu"),
    *("Relu", "Silu", "Swish", "HardSwish", "LeakyRelu", "AveragePool", "MaxPool", "GlobalAveragePool", "Resize"),
    *("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Tile", "Concat", "Split", "Slice", "Pad"),
    *("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "TensorScatter", "Identity", "Cast"),
    *("Constant", "ConstantOfShape"),
}
# An RMSNorm in single operators, and the forms it may take.
_RMS_NORMS = [
    Counter(["Square", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul", "Mul"]),
    Counter(["Square", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]),
    Counter(["Square", "ReduceMean", "Sqrt", "Div", "Mul"]),  # without an epsilon
]
# Rotary position embedding: angles, their sines and cosines, and the rotation of queries and keys by them.
_ROTATION = {"Cos", "Sin", "Range", "Mul", "Add", "Sub", "Neg", "Concat", "Unsqueeze", "Expand", "Transpose", "Reshape"}
_CACHE = {"TensorScatter"}


@dataclass(frozen=True)
class Island:
    """Nodes that compute in float32 and read each other.

    Attributes:
        kind: "norm", "rotary embedding" or "KV cache"; "" for one that is not known.
        nodes: in the order of the graph.
    """

    kind: str
    nodes: tuple[ir.Node, ...]


def find_islands(graph: ir.Graph, whole_cache: bool) -> set[ir.Node]:
    """Choose the nodes that have to compute in float32.

    Args:
        graph: in float32, its nodes in the order in which they run.
        whole_cache: keep the KV cache in float32 too, so that writing to it converts nothing.
    """
    islands = _position_nodes(graph)
    norms: set[ir.Value] = set()  # values inside a norm
    for node in graph:
        if node.op_type in _PRODUCTS or node in islands:
            continue
        if node.op_type in _CACHE:
            if whole_cache:
                islands.add(node)
        elif node.op_type in _NORMS | _NORM_PARTS or _is_square(node) or not norms.isdisjoint(node.inputs):
            islands.add(node)
            if not _ends_norm(node):
                norms.update(node.outputs)
    return islands


def check_precisions(graph: ir.Graph) -> list[Island]:
    """List what computes in float32 in a half-precision graph, and refuse what is not known.

    Args:
        graph: after its conversion, every value typed.

    Returns:
        The islands, in the order of the graph.

    Raises:
        UnsuitableGraphError: an island that is none of those known, or an operator in half precision of which it is not
            known whether that is precise enough. The message names the node.
    """
    for node in graph:
        if not _in_float32(node) and _is_float(node) and (node.op_type not in _HALF or _is_square(node)):
            raise UnsuitableGraphError(
                f"'{node.outputs[0].name}' is computed by {node.op_type}, of which half precision is not known to be "
                f"exact enough; {_INSTEAD}"
            )
    islands = [Island(_kind(nodes), tuple(nodes)) for nodes in _components(graph)]
    for island in islands:
        if not island.kind:
            operators = ", ".join(node.op_type for node in island.nodes[:8])
            raise UnsuitableGraphError(
                f"float32 would be kept around '{island.nodes[0].outputs[0].name}' for no norm or position that is known "
                f"({operators}); {_INSTEAD}"
            )
    return islands


_INSTEAD = "export the checkpoint with --precision fp16 instead"


def _components(graph: ir.Graph) -> Iterable[list[ir.Node]]:
    """Nodes in float32 that read each other, up to where a norm ends: another one may follow without a conversion."""
    positions = _position_nodes(graph)
    root: dict[ir.Node, ir.Node] = {}

    def find(node: ir.Node) -> ir.Node:
        while root[node] is not node:
            node = root[node]
        return node

    for node in graph:
        if not _in_float32(node):
            continue
        root[node] = node
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer in root and (producer in positions or not _ends_norm(producer)):
                root[find(producer)] = find(node)
    components: dict[ir.Node, list[ir.Node]] = {}
    for node in root:
        components.setdefault(find(node), []).append(node)
    return components.values()


def _kind(nodes: list[ir.Node]) -> str:
    operators = ["Square" if _is_square(node) else node.op_type for node in nodes]
    if operators in [[norm] for norm in _NORMS] or Counter(operators) in _RMS_NORMS:
        return "norm"
    rest = set(operators) - _CACHE
    if not rest:
        return "KV cache"
    return "rotary embedding" if {"Cos", "Sin"} <= rest <= _ROTATION else ""


def _in_float32(node: ir.Node) -> bool:
    """Whether a node computes in float32; casts compute nothing."""
    return node.op_type != "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT


def _is_float(node: ir.Node) -> bool:
    return node.outputs[0].dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _ends_norm(node: ir.Node) -> bool:
    """Whether a node of an island gives a norm's result: an operator of its own, or the product with its scale."""
    return node.op_type in _NORMS or any(value is not None and is_learned_vector(value) for value in node.inputs)


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])


def _position_nodes(graph: ir.Graph) -> set[ir.Node]:
    """What computes with positions: from integers turned to floats, or angles, up to the next product or KV cache."""
    nodes: set[ir.Node] = set()
    values: set[ir.Value | None] = set()
    for node in graph:
        if node.op_type in _PRODUCTS | _CACHE:
            continue
        from_integers = node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in _INTEGERS
        if from_integers or node.op_type in _ANGLES or not values.isdisjoint(node.inputs):
            nodes.add(node)
            values.update(node.outputs)
    return nodes
