"""Weight-only INT4 and INT8 of linear layers: W ≈ scale · q, one scale for each block of 16 to 128 inputs of an output.

INT4 (q in −8 … 7) is rounded to the nearest or, given samples of the layers' inputs, as GPTQ does; INT8 (−128 … 127) to
the nearest. Written as `DequantizeLinear(q, scale, axis=0, block_size) → MatMul`, zero point 0: TensorRT's form, which
OpenVINO reads as compressed products, and which ONNX Runtime fuses to MatMulNBits (`export/build/nbits_layout.py` does it
beforehand). Libraries do not serve here: onnxruntime's n-bit quantizer and NVIDIA ModelOpt hold the whole model in memory,
and the former's scales are negative where a block's largest weight is positive, which TensorRT refuses. A test compares
the results.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from ...graphs.initializers import add_constant, lazy_constant
from .gptq import gptq_factor, round_with_samples
from .linear_layer_pass import LinearLayerPass
from .linear_layers import LinearLayer

BLOCKS = (128, 64, 32, 16)  # smaller ones are more exact and slower; TensorRT takes these


def block_size(width: int) -> int | None:
    """The largest block that divides the input width; None if none does."""
    return next((block for block in BLOCKS if width % block == 0), None)


class _BlockWeightPass(LinearLayerPass):
    """Store the weights of linear layers as integers with a scale for each block of inputs."""

    dtype: ir.DataType
    largest: int  # the magnitude that a block's largest weight is stored as

    def __init__(self, samples: Mapping[str, np.ndarray] | None = None, *, layer_names: Collection[str] | None = None):
        """Set up the pass.

        Args:
            samples: name of a layer's input → rows [R, in] of it; a layer without any is rounded to the nearest.
            layer_names: the layers to rewrite; None is all.
        """
        super().__init__(layer_names)
        self.samples = samples or {}

    def applies_to(self, layer: LinearLayer) -> bool:
        """Whether a block divides the layer's input width."""
        return block_size(layer.shape[0]) is not None

    def rewrite(self, model: ir.Model, layers: Sequence[LinearLayer]) -> None:
        """Replace the weights.

        Raises:
            RedipruneError: a weight is not finite; the graph is then half rewritten.
        """

        @lru_cache(maxsize=1)  # layers that share an input follow each other
        def factor(name: str) -> np.ndarray | None:
            rows = self.samples.get(name)
            return None if rows is None else gptq_factor(rows)

        for layer in layers:
            self._replace_weight(model, layer, factor)

    def _replace_weight(self, model: ir.Model, layer: LinearLayer, factor: Callable[[str], np.ndarray | None]) -> None:
        block = block_size(layer.shape[0])
        assert block is not None  # by `applies_to`
        dtype, source = layer.dtype, str(layer.input.name)
        scales = block_scales(layer.finite_weight(), block, dtype.numpy(), self.largest)
        scale = add_constant(model, ir.tensor(scales, name=f"{layer.name}.weight.scale"))

        def stored_numbers() -> ir.TensorProtocol:
            weight, correlations = layer.weight(), factor(source)
            integers = (
                round_to_blocks(weight, scales, block, self.largest)
                if correlations is None
                else round_with_samples(weight, scales, block, correlations)
            )
            return ir.tensor(integers, dtype=self.dtype, name=stored.name)

        stored = lazy_constant(
            model, f"{layer.name}.weight.{self.dtype.name.lower()}", self.dtype, layer.shape, stored_numbers
        )
        node = ir.node("DequantizeLinear", [stored, scale], {"axis": 0, "block_size": block})
        (matrix,) = node.outputs
        matrix.name, matrix.type, matrix.shape = f"{layer.name}.weight.dequantized", ir.TensorType(dtype), stored.shape
        model.graph.insert_before(layer.node, node)
        layer.node.replace_input_with(1, matrix)


class Int4WeightPass(_BlockWeightPass):
    """Store the weights of linear layers in INT4; products stay in the layers' own precision.

    requires: as every `LinearLayerPass`.
    ensures: likewise; a layer whose input width no block divides stays as it is.
    """

    dtype, largest = ir.DataType.INT4, 7


class Int8WeightPass(_BlockWeightPass):
    """Store the weights of linear layers in INT8, rounded to the nearest; as `Int4WeightPass` else."""

    dtype, largest = ir.DataType.INT8, 127


def block_scales(weight: np.ndarray, block: int, dtype: np.dtype, largest: int = 7) -> np.ndarray:
    """Scales [in / block, out] that reach each block's largest magnitude with `largest`; 1 where a block is zero.

    Args:
        weight: [in, out] float32.
        block: inputs that share a scale.
        dtype: of the scales, that of the product.
        largest: the largest integer.
    """
    blocks = weight.reshape(-1, block, weight.shape[1])  # [in / block, block, out]
    scales = (np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(largest)).astype(dtype)
    return np.where(scales > 0, scales, dtype.type(1))


def round_to_blocks(weight: np.ndarray, scales: np.ndarray, block: int, largest: int = 7) -> np.ndarray:
    """Round a weight [in, out] to the nearest multiples of its scales [in / block, out]: int8 [in, out].

    In half precision a scale may be rounded down, and one integer more than `largest` below 0 serves.
    """
    blocks = weight.reshape(-1, block, weight.shape[1]) / scales[:, None].astype(np.float32)
    np.rint(blocks, out=blocks)
    return np.clip(blocks, -largest - 1, largest, out=blocks).astype(np.int8).reshape(weight.shape)
