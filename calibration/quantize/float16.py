"""Half precision of a float32 graph: fp16, or bf16 for TensorRT, with islands that stay in float32.

Products, convolutions and attention are in half; so is what moves or adds up their results. In float32 stay norms,
from the squares to the scaled result, softmaxes, and the angles of positions with their sines and cosines. This is
where a model exported in fp16 has them too. ONNX Runtime's and onnxconverter-common's float16 converters know neither
bf16 nor these islands and hold the model in memory; ModelOpt's AutoCast finds islands by running the graph.

bf16 is for TensorRT only: ONNX Runtime has no bf16 products on CPUs. numpy has no bf16 either, so a bf16 stage takes and
gives float32, its KV cache included; a stage in fp16 takes and gives fp16.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graphs.initializers import add_constant
from ...runtime.errors import RedipruneError

_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"}
_NORMS = {"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "Softmax"}
_NORM_PARTS = {"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal", "Exp"}
_ANGLES = {"Cos", "Sin", "Range"}
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}


def convert(model: ir.Model, half: ir.DataType) -> None:
    """Put a graph in half precision, in place; weights are converted one at a time when the model is saved.

    Args:
        model: a stage's graph in float32, its values typed. Not that of `select`, which is float32 always.
        half: FLOAT16 or BFLOAT16.

    Raises:
        RedipruneError: when the model is saved, a weight is beyond fp16's range.
    """
    graph = model.graph
    boundary = half if half == ir.DataType.FLOAT16 else ir.DataType.FLOAT
    islands = _islands(graph, whole_cache=boundary != half)
    floats = {value for value in _values(graph) if value.dtype == ir.DataType.FLOAT}
    halves: dict[ir.Value, ir.Value] = {}  # value → itself in the other precision

    def in_dtype(value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        if value not in floats or value.dtype == dtype:
            return value
        if value not in halves:
            if value.const_value is not None:
                halves[value] = _constant(model, value, dtype)
            else:
                cast = ir.node("Cast", [value], {"to": dtype})
                (made,) = cast.outputs
                made.name, made.type, made.shape = (
                    f"{value.name}.{dtype.name.lower()}",
                    ir.TensorType(dtype),
                    value.shape,
                )
                graph.append(cast) if before is None else graph.insert_before(before, cast)
                halves[value] = made
        return halves[value]

    for value in graph.inputs:
        if value in floats:
            value.dtype = boundary
    for node in list(graph):
        dtype = ir.DataType.FLOAT if node in islands else half
        for at, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(at, in_dtype(value, dtype, node))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
        for value in node.outputs:
            if value in floats:
                value.dtype = dtype
    for at, value in enumerate(graph.outputs):
        if value in floats and value.dtype != boundary:
            name, result = value.name, in_dtype(value, boundary, None)
            value.name, result.name = f"{name}.{half.name.lower()}", name
            graph.outputs[at] = result
    RemoveUnusedNodesPass()(model)


def _islands(graph: ir.Graph, whole_cache: bool) -> set[ir.Node]:
    """The nodes that compute in float32; with `whole_cache` also those that write the KV cache, so that none is copied."""
    islands: set[ir.Node] = set()
    norms: set[ir.Value] = set()  # inside a norm
    angles: set[ir.Value] = set()
    for node in graph:
        inputs = {value for value in node.inputs if value is not None}
        if node.op_type in _PRODUCTS:
            continue
        if node.op_type == "TensorScatter":
            if whole_cache:
                islands.add(node)
        elif node.op_type in _NORMS:
            islands.add(node)
        elif node.op_type in _ANGLES or inputs & angles or _is_position(node):
            islands.add(node)
            angles.update(node.outputs)
        elif node.op_type in _NORM_PARTS or inputs & norms:
            islands.add(node)
            if not any(_is_learned_vector(value) for value in inputs):  # by which a norm ends
                norms.update(node.outputs)
    return islands


def _is_position(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in _INTEGERS


def _is_learned_vector(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == 1 and value.const_value.size > 1


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _constant(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    tensor = value.const_value
    assert tensor is not None
    name = f"{value.name}.{dtype.name.lower()}"
    lazy = ir.LazyTensor(_converted(tensor, dtype, name), dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
    return add_constant(model, lazy)


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> Callable[[], ir.TensorProtocol]:
    def convert() -> ir.TensorProtocol:
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            converted = array.astype(dtype.numpy())
        if not np.array_equal(np.isfinite(converted.astype(np.float32)), np.isfinite(array)):
            raise RedipruneError(
                f"'{tensor.name}' has entries beyond the range of {dtype.name.lower()}; use bf16 or fp32"
            )
        return ir.tensor(converted, dtype=dtype, name=name)

    return convert
