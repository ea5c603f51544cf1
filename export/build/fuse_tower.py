"""The vision tower in ONNX Runtime's own operators: one MultiHeadAttention a layer, and QuickGelu as one operator.

The portable `Attention` writes all scores of a picture to memory and reads its heads through transposes;
`MultiHeadAttention` on CPUs goes through them block by block, from the projections as they are. ONNX Runtime makes neither
of opset 23's operator, and its QuickGelu not where the product behind it is quantised.
"""

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import pattern

_ONNXRUNTIME = "com.microsoft"


def fuse_tower(model: ir.Model) -> int:
    """Rewrite a vision stage's graph in place; inputs, outputs and weights stay the same.

    Args:
        model: the graph, in float32 but for its products, which may be quantised.

    Returns:
        The number of layers whose attention was fused.
    """
    if any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.inputs):
        return 0  # on CPUs the operator takes float32 only
    rules = [
        pattern.RewriteRule(_attention, _multi_head_attention, _is_fusible),
        pattern.RewriteRule(_quick_gelu, _one_quick_gelu, _is_scalar),
    ]
    layers, _ = (pattern.RewriteRuleSet([rule]).apply_to_model(model) for rule in rules)
    if layers:
        model.opset_imports[_ONNXRUNTIME] = 1
        RemoveUnusedNodesPass()(model)
    return layers


def _attention(op: Any, q: Any, k: Any, v: Any, out_shape: Any) -> Any:
    """A layer's attention as torch.onnx writes it, from projections [F, P, heads · width] to their like."""
    query, key, value = (
        op.Transpose(op.Reshape(x, pattern.Var(f"{name}_shape"), _outputs=[f"{name}_heads"]), perm=[0, 2, 1, 3])
        for name, x in (("q", q), ("k", k), ("v", v))
    )  # [F, heads, P, width]
    attention = op.Attention(query, key, value, _allow_other_attributes=True, _outputs=["attention"])
    split = op.Reshape(attention, pattern.Var("same_shape"), _outputs=["reshaped"])
    heads = pattern.OrValue([split, attention])  # torch.onnx puts a Reshape to the same shape here
    return op.Reshape(op.Transpose(heads, perm=[0, 2, 1, 3]), out_shape)


def _is_fusible(context: Any, attention: Any, q_heads: Any, **_: Any) -> bool:
    attributes = attention.producer().attributes
    plain = not attributes.get_int("is_causal", 0) and not attributes.get_float("softcap", 0.0)
    return plain and "scale" in attributes and q_heads.shape is not None and isinstance(q_heads.shape[2], int)


def _multi_head_attention(op: Any, q: Any, k: Any, v: Any, attention: Any, q_heads: Any, **_: Any) -> Any:
    return op.MultiHeadAttention(
        q,
        k,
        v,
        num_heads=q_heads.shape[2],
        scale=attention.producer().attributes["scale"].value,
        _domain=_ONNXRUNTIME,
    )


def _quick_gelu(op: Any, x: Any, slope: Any) -> Any:
    return op.Mul(x, op.Sigmoid(op.Mul(x, slope)))


def _is_scalar(context: Any, slope: Any, **_: Any) -> bool:
    return slope.const_value is not None and slope.const_value.size == 1


def _one_quick_gelu(op: Any, x: Any, slope: Any) -> Any:
    return op.QuickGelu(x, alpha=float(slope.const_value.numpy().item()), _domain=_ONNXRUNTIME)
