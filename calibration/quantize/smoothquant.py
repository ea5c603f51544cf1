"""SmoothQuant (Xiao et al., arXiv 2211.10438): activations' outlier channels made smaller, their weights larger.

    x · W = (x / s) · (diag(s) · W)   with   s = max|x|^m / max|W|^(1−m)   for each input channel

m is the paper's migration strength α, called `smoothing` here: α is the weight of ReDiPrune's selection. The division
goes into the weights of the norm before the layers, where there is one, and is a product of its own elsewhere.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...graphs.initializers import add_constant
from .linear_layers import LinearLayer

_LEAST = 1e-5  # of a channel that is never used, or whose weights are all zero


def smoothing_factors(largest: np.ndarray, layers: Sequence[LinearLayer], smoothing: float) -> np.ndarray:
    """Compute s [C] for an input that all of `layers` read.

    Args:
        largest: largest |x| per channel of the input, [C].
        layers: the layers that read it.
        smoothing: in [0, 1]; 0 evens out the weights' channels, 1 the activations'.

    Raises:
        RedipruneError: a weight is not finite.
    """
    weights = np.max([np.abs(layer.finite_weight()).max(axis=1) for layer in layers], axis=0)
    factors = np.maximum(largest, _LEAST) ** smoothing / np.maximum(weights, _LEAST) ** (1 - smoothing)
    used = (largest > _LEAST) & (weights > _LEAST)
    return np.where(used, factors, 1.0).astype(np.float32)


def divide_input(model: ir.Model, layers: Sequence[LinearLayer], factors: np.ndarray) -> ir.Value:
    """Divide the input that `layers` share by s [C]; the caller multiplies their weights.

    Returns:
        The value that the layers have to read now.
    """
    value = layers[0].input
    norm = value.producer()
    readers = {node for node, _ in value.uses()}
    constants = [] if norm is None else _channel_constants(norm)
    if norm is not None and constants and readers == {layer.node for layer in layers}:
        for at in constants:
            old = norm.inputs[at]
            assert old is not None and old.const_value is not None
            divided = old.const_value.numpy().astype(np.float32) / factors
            tensor = ir.tensor(divided.astype(old.const_value.dtype.numpy()), name=f"{old.name}.smoothed")
            norm.replace_input_with(at, add_constant(model, tensor))
        return value
    dtype = ir.DataType.FLOAT if value.dtype is None else value.dtype
    factor = add_constant(model, ir.tensor((1 / factors).astype(dtype.numpy()), name=f"{value.name}.smoothing"))
    product = ir.node("Mul", [value, factor], name=f"{value.name}_smooth")
    (smoothed,) = product.outputs
    smoothed.name, smoothed.dtype, smoothed.shape = f"{value.name}.smooth", dtype, value.shape
    model.graph.insert_before(layers[0].node, product)
    return smoothed


def _channel_constants(norm: ir.Node) -> list[int]:
    """Which inputs of a norm's last node multiply its result channel by channel; none where it is no norm."""
    if norm.op_type == "LayerNormalization":
        return [at for at in (1, 2) if at < len(norm.inputs) and norm.inputs[at] is not None]
    if norm.op_type == "RMSNormalization":
        return [1]
    if norm.op_type == "Mul":  # an RMSNorm in single operators ends so
        return [at for at, value in enumerate(norm.inputs) if value is not None and is_learned_vector(value)][:1]
    return []


def is_learned_vector(value: ir.Value) -> bool:
    """Whether a value is a constant with one entry per channel, as the scale of a norm is."""
    return value.const_value is not None and len(value.const_value.shape) == 1 and value.const_value.size > 1
