"""Forms applied: linear layers of a graph put into one, in place."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..activations import Activation
from . import float16, int4, int8_dynamic, qdq
from .linear_layers import Linear


def apply_form(
    model: ir.Model,
    form: str,
    layers: Sequence[Linear],
    activations: Mapping[str, Activation],
    ranges: str,
    alpha: float | None,
) -> None:
    """Put linear layers of a graph into a form; fp16 and bf16 take the whole graph.

    Args:
        model: a stage's graph; changed in place.
        form: a key of `recipes.FORMS`.
        layers: of that graph.
        activations: of the layers' inputs, by name; those that the form uses.
        ranges: a key of `ranges.RANGES`.
        alpha: of SmoothQuant; None is without.

    Raises:
        RedipruneError: a layer that the form cannot represent.
    """
    match form:
        case "int8":
            qdq.quantize(model, layers, activations, qdq.INT8, ranges, alpha)
        case "fp8":  # has exponents for the outliers
            qdq.quantize(model, layers, activations, qdq.FP8, alpha=None)
        case "int8-dynamic":
            int8_dynamic.quantize(model, layers)
        case "int4":
            int4.quantize(model, layers, {name: seen.rows for name, seen in activations.items()} or None)
        case "fp16":
            float16.convert(model, ir.DataType.FLOAT16)
        case "bf16":
            float16.convert(model, ir.DataType.BFLOAT16)
