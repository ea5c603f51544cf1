"""Weight-only int4 of linear layers: W ≈ scale · q, q in −8 … 7, one scale for each block of 16 to 128 inputs of an output.

Written as `DequantizeLinear(q, scale, axis=0, block_size) → MatMul`, zero point 0: TensorRT's form, and the one that
ONNX Runtime fuses to MatMulNBits when it loads the graph (`export/nbits_layout.py` does it beforehand). Libraries do not
serve here: onnxruntime's n-bit quantizer and NVIDIA ModelOpt hold the whole model in memory, and the former's scales
are negative where a block's largest weight is positive, which TensorRT refuses.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .layers import Linear, add_constant, lazy_constant

BLOCKS = (128, 64, 32, 16)  # smaller ones are more exact and slower; TensorRT takes these


def block_size(width: int) -> int | None:
    """The largest block that divides the input width; None if none does."""
    return next((block for block in BLOCKS if width % block == 0), None)


def quantize(model: ir.Model, layers: Sequence[Linear], progress: Callable[[int, int], None] | None = None) -> None:
    """Put int4 weights in place of the layers' own. A layer whose width no block divides stays as it is.

    The weights are read twice, for their scales now and for their values when the model is saved, one at a time.

    Args:
        model: a stage's graph; changed in place.
        layers: of that graph.
        progress: called with layers done and their number.

    Raises:
        RedipruneError: a weight is not finite; the graph is then half rewritten.
    """
    for done, layer in enumerate(layers):
        if progress is not None:
            progress(done, len(layers))
        block = block_size(layer.shape[0])
        if block is not None:
            _quantize_layer(model, layer, block)
    RemoveUnusedNodesPass()(model)


def _quantize_layer(model: ir.Model, layer: Linear, block: int) -> None:
    dtype = layer.dtype
    scales = block_scales(layer.finite_weight(), block, dtype.numpy())
    scale = add_constant(model, ir.tensor(scales, name=f"{layer.name}.weight.scale"))

    def pack() -> ir.TensorProtocol:
        return ir.tensor(round_to_blocks(layer.weight(), scales, block), dtype=ir.DataType.INT4, name=quantized.name)

    quantized = lazy_constant(model, f"{layer.name}.weight.int4", ir.DataType.INT4, layer.shape, pack)
    node = ir.node("DequantizeLinear", [quantized, scale], {"axis": 0, "block_size": block})
    (matrix,) = node.outputs
    matrix.name, matrix.type, matrix.shape = f"{layer.name}.weight.dequantized", ir.TensorType(dtype), quantized.shape
    model.graph.insert_before(layer.node, node)
    layer.node.replace_input_with(1, matrix)


def block_scales(weight: np.ndarray, block: int, dtype: np.dtype) -> np.ndarray:
    """weight [in, out] → scales [in / block, out] that reach each block's largest magnitude with 7; 1 for zero blocks."""
    blocks = weight.reshape(-1, block, weight.shape[1])
    scales = (np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(7)).astype(dtype)
    return np.where(scales > 0, scales, dtype.type(1))


def round_to_blocks(weight: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """weight [in, out], scales [in / block, out] → the nearest integers, int8 in −8 … 7 [in, out]."""
    blocks = weight.reshape(-1, block, weight.shape[1]) / scales[:, None].astype(np.float32)
    np.rint(blocks, out=blocks)
    return np.clip(blocks, -8, 7, out=blocks).astype(np.int8).reshape(weight.shape)
