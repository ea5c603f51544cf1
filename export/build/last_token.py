"""What only the last token's logits need is computed for the last token alone.

torch.onnx takes the last token where the last layer ends. Taken behind that layer's attention instead, its feed-forward
network and output projection see one token of the prompt in place of all: a short prompt's prefill takes nearly one
layer less. Decoders in static INT8, whose values are quantised and dequantised on their way, stay as they are.
"""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from ...graphs.initializers import is_constant

# Operators that take each token for itself, where constants have no axis of tokens; see `_takes_each_token` for others.
_BY_TOKEN = {
    *("Abs", "Add", "Cast", "Div", "Max", "Mul", "Pow", "QuantizeLinear", "Reciprocal", "Sigmoid", "Sqrt"),
    *("MatMulIntegerToFloat", "MatMulNBits", "QuickGelu", "SimplifiedLayerNormalization"),
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
    values = [value for node in nodes for value in node.inputs if value is not None and not is_constant(value)]
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
    while node is not None and _takes_each_token(node):
        source = next((value for value in node.inputs if value is not None and not is_constant(value)), None)
        node = None if source is None else source.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    start, axis = (ir.convenience.get_const_tensor(node.inputs[at]) for at in (1, 3))  # type: ignore[arg-type]
    last = start is not None and axis is not None and (start.numpy().tolist(), axis.numpy().tolist()) == ([-1], [1])
    return node if last else None


def _of_one_token(model: ir.Model, last: ir.Node) -> Collection[ir.Node]:
    """The operators before `last` whose results nothing else reads."""
    found = {last: None}
    for node in reversed(list(model.graph)):
        users = [user for value in node.outputs for user, _ in value.uses()]
        if (
            _takes_each_token(node)
            and users
            and all(user in found for user in users)
            and not any(value.is_graph_output() for value in node.outputs)
            and not any(is_constant(value) for value in node.outputs)
        ):
            found[node] = None
    del found[last]
    return found


def _takes_each_token(node: ir.Node) -> bool:
    """Whether an operator gives of each token what it would give of it alone."""
    if node.op_type in ("ReduceMax", "ReduceMean"):  # over the channels, not over the tokens
        axes = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        return axes is not None and axes.numpy().tolist() == [-1]
    if node.op_type == "MatMul":
        return node.inputs[1] is not None and is_constant(node.inputs[1])
    return node.op_type in _BY_TOKEN


def _is_all_tokens(value: ir.Value, like: ir.Value) -> bool:
    """Whether a value is known to be [B, S, …] as another."""
    if value.shape is None or like.shape is None or len(value.shape) != 3 or len(like.shape) != 3:
        return False
    tokens = value.shape[1]
    return tokens == like.shape[1] and (isinstance(tokens, int) or tokens.value is not None)
