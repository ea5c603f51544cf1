"""Weight-only int4 of linear layers: W ≈ scale · q, q in −8 … 7, one scale for each block of 16 to 128 inputs of an output.

Rounding is to the nearest, or, given samples of the layers' inputs, GPTQ's (arXiv 2210.17323): input after input, what
rounding lost is made up for by the inputs not yet rounded, as they are correlated in the samples. On the model that sees
this takes the error of a layer's output from 6.2 to 2.7 % on tokens that were not among the samples; AWQ's scaling of
channels gave 5.7 % even on those that were, and would change the graph.

Written as `DequantizeLinear(q, scale, axis=0, block_size) → MatMul`, zero point 0: TensorRT's form, and the one that
ONNX Runtime fuses to MatMulNBits when it loads the graph (`export/build/nbits_layout.py` does it beforehand). Libraries do not
serve here: onnxruntime's n-bit quantizer and NVIDIA ModelOpt hold the whole model in memory, and the former's scales
are negative where a block's largest weight is positive, which TensorRT refuses.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graphs.initializers import add_constant, lazy_constant
from .linear_layers import Linear

BLOCKS = (128, 64, 32, 16)  # smaller ones are more exact and slower; TensorRT takes these


def block_size(width: int) -> int | None:
    """The largest block that divides the input width; None if none does."""
    return next((block for block in BLOCKS if width % block == 0), None)


_DAMPING = 0.03  # of the mean square of an input, added to each: as if every input also varied on its own


def quantize(
    model: ir.Model,
    layers: Sequence[Linear],
    samples: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Put int4 weights in place of the layers' own. A layer whose width no block divides stays as it is.

    The weights are read twice, for their scales now and for their values when the model is saved, one at a time.

    Args:
        model: a stage's graph; changed in place.
        layers: of that graph.
        samples: name of a layer's input → rows [R, in] of it, better more than it is wide; without them rounding is to
            the nearest.
        progress: called with layers done and their number.

    Raises:
        RedipruneError: a weight is not finite; the graph is then half rewritten.
    """

    @lru_cache(maxsize=1)  # layers that share an input follow each other
    def factor(name: str) -> np.ndarray | None:
        rows = None if samples is None else samples.get(name)
        return None if rows is None else gptq_factor(rows)

    for done, layer in enumerate(layers):
        if progress is not None:
            progress(done, len(layers))
        block = block_size(layer.shape[0])
        if block is not None:
            _quantize_layer(model, layer, block, factor)
    RemoveUnusedNodesPass()(model)


def _quantize_layer(model: ir.Model, layer: Linear, block: int, factor: Callable[[str], np.ndarray | None]) -> None:
    dtype, source = layer.dtype, str(layer.input.name)
    scales = block_scales(layer.finite_weight(), block, dtype.numpy())
    scale = add_constant(model, ir.tensor(scales, name=f"{layer.name}.weight.scale"))

    def pack() -> ir.TensorProtocol:
        weight, correlated = layer.weight(), factor(source)
        integers = (
            round_to_blocks(weight, scales, block)
            if correlated is None
            else round_with_samples(weight, scales, block, correlated)
        )
        return ir.tensor(integers, dtype=ir.DataType.INT4, name=quantized.name)

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


def gptq_factor(rows: np.ndarray) -> np.ndarray:
    """rows [R, in] → upper triangular U [in, in] float32 with Uᵀ · U = (damped Xᵀ · X / R)⁻¹.

    U[i, j] / U[i, i] says how much of an error in input i is made up for by input j > i.
    """
    rows = rows.astype(np.float64)
    moments = rows.T @ rows / len(rows)
    diagonal = np.diagonal(moments)
    # An input that is always zero gets a moment too, whatever the scale of the others.
    moments += np.eye(len(moments)) * (_DAMPING * diagonal.mean() or 1.0)
    return np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)


def round_with_samples(weight: np.ndarray, scales: np.ndarray, block: int, factor: np.ndarray) -> np.ndarray:
    """weight [in, out], scales [in / block, out], `gptq_factor` → integers that keep the outputs, int8 in −8 … 7 [in, out].

    The weight is overwritten.
    """
    integers = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), block):
        end, scale = start + block, scales[start // block].astype(np.float32)
        errors = np.empty((block, weight.shape[1]), np.float32)
        for i in range(start, end):
            rounded = np.clip(np.rint(weight[i] / scale), -8, 7)
            integers[i] = rounded
            errors[i - start] = (weight[i] - rounded * scale) / factor[i, i]
            weight[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - start])
        weight[end:] -= factor[start:end, end:].T @ errors
    return integers
