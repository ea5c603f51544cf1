"""Block-wise weights in ONNX Runtime's layout: `DequantizeLinear(int4 or int8, blocks of inputs) → MatMul` becomes
`MatMulNBits`.

ONNX Runtime does the same each time it loads the portable float32 graph, with the same results to the bit; done once,
loading takes a third of the time and no longer holds both layouts. In float16 the two differ by its rounding.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graphs.initializers import lazy_constant

_BITS = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}
INT8 = 4  # ONNX Runtime's "accuracy level" at which the activations' blocks are rounded to int8


def to_nbits(model: ir.Model, accuracy_level: int = INT8) -> int:
    """Rewrite every product with a weight of `Int4WeightPass` or `Int8WeightPass`, in place; weights are repacked one at a time when the model is saved.

    Args:
        model: a graph that `calibration.quantize.block_weights` made, or one like it: int4 or int8 constants [in, out], scales [in / block, out].
        accuracy_level: the operator's attribute; 4 rounds activations to int8 (fastest), 1 computes in float32.

    Returns:
        The number of products rewritten.
    """
    rewritten = 0
    for node in list(model.graph):
        source = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if source is not None and _has_blocks(source):
            _rewrite(model, node, source, accuracy_level)
            rewritten += 1
    RemoveUnusedNodesPass()(model)
    return rewritten


def pack(integers: np.ndarray, block: int, bits: int = 4) -> np.ndarray:
    """Integers [in, out] as the operator stores them.

    Returns:
        uint8 [out, in / block, block · bits / 8]: of 4 bits, −8 … 7 offset by 8, two a byte, the low half first; of 8
        bits, offset by 128.
    """
    if bits == 8:
        return (np.ascontiguousarray(integers.T).view(np.uint8) ^ np.uint8(128)).reshape(integers.shape[1], -1, block)
    columns = np.ascontiguousarray(integers.T.astype(np.int8)).view(np.uint8)
    columns += np.uint8(8)  # −8 … 7, modulo 256, to 0 … 15
    packed = columns[:, 0::2] | (columns[:, 1::2] << 4)
    return packed.reshape(len(columns), -1, block // 2)


def _has_blocks(source: ir.Node) -> bool:
    return (
        source.op_type == "DequantizeLinear"
        and len(source.inputs) == 2
        and all(value is not None and value.const_value is not None for value in source.inputs)
        and source.inputs[0].dtype in _BITS  # type: ignore[union-attr]
        and source.attributes.get_int("axis", 1) == 0
        and source.attributes.get_int("block_size", 0) > 0
    )


def _rewrite(model: ir.Model, node: ir.Node, source: ir.Node, accuracy_level: int) -> None:
    graph, (integers, scale) = model.graph, source.inputs
    assert integers is not None and integers.const_value is not None
    assert scale is not None and scale.const_value is not None
    stored, scales = integers.const_value, scale.const_value
    width, out = stored.shape.numpy()
    block, bits = source.attributes["block_size"].as_int(), _BITS[stored.dtype]
    inputs = [
        _constant(
            model,
            f"{integers.name}.nbits",
            ir.DataType.UINT8,
            (out, width // block, block * bits // 8),
            lambda: pack(_read(stored), block, bits),
        ),
        _constant(
            model,
            f"{scale.name}.nbits",
            scales.dtype,
            (out, width // block),
            lambda: np.ascontiguousarray(_read(scales).T),
        ),
    ]
    model.opset_imports["com.microsoft"] = 1
    attributes = {"K": width, "N": out, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    product = ir.node("MatMulNBits", [node.inputs[0], *inputs], attributes, domain="com.microsoft", name=node.name)
    old, (new,) = node.outputs[0], product.outputs
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, product)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _read(tensor: ir.TensorProtocol) -> np.ndarray:
    array = tensor.numpy()
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype == ir.DataType.INT4:
        tensor.release()  # it would keep what it unpacked, a byte for each weight
    return array


def _constant(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], np.ndarray]
) -> ir.Value:
    found = model.graph.initializers.get(name)
    if found is not None:  # one weight of several products
        return found
    return lazy_constant(model, name, dtype, shape, lambda: ir.tensor(compute(), name=name))
