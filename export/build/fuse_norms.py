"""RMS normalisation as one operator of ONNX Runtime in place of the seven that torch.onnx writes.

ONNX Runtime 1.32 looks for `Div(x, Sqrt(…))` only, torch.onnx writes `Mul(x, Reciprocal(Sqrt(…)))`.
"""

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import pattern

from ...graphs.initializers import is_constant


def fuse_norms(model: ir.Model) -> int:
    """Rewrite a graph in place; inputs, outputs and weights stay the same.

    Args:
        model: the graph; norms that are not computed in float32 stay as they are.

    Returns:
        The number of norms fused.
    """
    rules = [
        pattern.RewriteRule(_rms_norm(weight_first), _one_operator, _is_last_axis_in_float)
        for weight_first in (True, False)
    ]
    fused = pattern.RewriteRuleSet(rules).apply_to_model(model)
    RemoveUnusedNodesPass()(model)
    return fused


def _rms_norm(weight_first: bool) -> Any:
    """x [..., C] · 1 / √(mean of x² + ε) · weight [C]."""

    def norm(op: Any, x: Any, two: Any, axes: Any, epsilon: Any, weight: Any) -> Any:
        mean = op.ReduceMean(op.Pow(x, two), axes, keepdims=1, _allow_other_attributes=True)
        normed = op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean, epsilon))))
        return op.Mul(weight, normed) if weight_first else op.Mul(normed, weight)

    return norm


def _is_last_axis_in_float(context: Any, x: Any, two: Any, axes: Any, epsilon: Any, weight: Any) -> bool:
    def number(value: Any) -> float | None:
        constant = value.const_value
        return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None

    plain = number(two) == 2 and number(axes) == -1 and number(epsilon) is not None
    # A weight that is stored in half precision is a constant too, behind its Cast.
    whole = is_constant(weight) and weight.shape is not None and len(weight.shape) == 1
    return plain and whole and x.dtype == ir.DataType.FLOAT and weight.dtype == ir.DataType.FLOAT


def _one_operator(op: Any, x: Any, epsilon: Any, weight: Any, **_: Any) -> Any:
    # ONNX Runtime has the operator in the default domain, where onnx does not know it.
    return op.SimplifiedLayerNormalization(x, weight, axis=-1, epsilon=float(epsilon.const_value.numpy().item()))
