"""What only the last token's logits need is computed for the last token alone.

torch.onnx takes the last token where the last layer ends. Taken behind that layer's attention instead, its feed-forward
network and output projection see one token of the prompt in place of all: a prefill is shorter by nearly one layer.
"""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

# Operators that take each token for itself, where constants have no axis of tokens.
_BY_TOKEN = {
    *("Abs", "Add", "Cast", "Div", "Max", "Mul", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMean"),
    *("Sigmoid", "Sqrt", "MatMul", "MatMulIntegerToFloat", "MatMulNBits", "QuickGelu", "SimplifiedLayerNormalization"),
}


def only_last_token(model: ir.Model) -> int:
    """Rewrite the `language` stage's graph in place, so that the last token is taken as early as it can be.

    Args:
        model: the graph; it ends in the logits [B, 1, V] of a `Slice` of [B, S, D].

    Returns:
        The number of operators that see one token now; 0 where the graph is not as expected.
    """
    last = _before_logits(model)
    if last is None or last.inputs[0] is None or not _is_all_tokens(last.inputs[0], last.inputs[0]):
        return 0
    nodes = _of_one_token(model, last)
    values = [value for node in nodes for value in node.inputs if value is not None and not _is_constant(value)]
    entering = dict.fromkeys(value for value in values if value.producer() not in nodes)
    if not nodes or not all(_is_all_tokens(value, last.inputs[0]) for value in entering):
        return 0
    for value in entering:
        early = ir.node("Slice", [value, *last.inputs[1:]])
        model.graph.insert_before(last, early)
        for user, at in list(value.uses()):
            if user in nodes:
                user.replace_input_with(at, early.outputs[0])
    for value in (value for node in nodes for value in node.outputs):
        value.shape = None  # that of all tokens
    last.outputs[0].replace_all_uses_with(last.inputs[0])
    model.graph.remove(last, safe=True)
    TopologicalSortPass()(model)
    return len(nodes)


def _before_logits(model: ir.Model) -> ir.Node | None:
    """The `Slice` that the head reads, its product quantised or not."""
    node = model.graph.outputs[0].producer()
    while node is not None and node.op_type in _BY_TOKEN:
        source = next((value for value in node.inputs if value is not None and not _is_constant(value)), None)
        node = None if source is None else source.producer()
    return node if node is not None and node.op_type == "Slice" else None


def _of_one_token(model: ir.Model, last: ir.Node) -> Collection[ir.Node]:
    """The operators before `last` whose results nothing else reads."""
    found = {last: None}
    for node in reversed(list(model.graph)):
        users = [user for value in node.outputs for user, _ in value.uses()]
        if (
            node.op_type in _BY_TOKEN
            and users
            and all(user in found for user in users)
            and not any(value.is_graph_output() for value in node.outputs)
            and not any(_is_constant(value) for value in node.outputs)
        ):
            found[node] = None
    del found[last]
    return found


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is computed from constants alone."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(source is None or _is_constant(source) for source in node.inputs)


def _is_all_tokens(value: ir.Value, like: ir.Value) -> bool:
    """Whether a value is known to be [B, S, …] as another."""
    shapes = value.shape, like.shape
    return all(shape is not None and len(shape) == 3 for shape in shapes) and shapes[0][1] == shapes[1][1]  # type: ignore[index]
