"""Deep stages from shallow ones: of layers that are alike three are traced, and the rest are made after the third.

Tracing takes seconds a layer, while the layers of a tower or a decoder differ in nothing but whose weights they read.
In a graph of three layers, the third follows from the second by a step: what one reads and writes stands, node for node,
for what the other does. The same step leads from the third to the fourth, and so on. Where there is no such step,
`UnlikeLayersError` is raised, and the stage must be traced whole.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir
from torch import nn

from ...graphs.stages import Stage

# The first may compute what all share, as far as the tracer is concerned; two more show the step.
SHALLOW = 3

SCOPES = "scopes"  # in a node's `meta`: the modules that it is from, outermost first

_PLAIN = (bool, int, float, str, tuple, type(None))

_Step = dict[ir.Value, ir.Value]  # from what a layer reads and writes to what stands there in the next one


class UnlikeLayersError(Exception):
    """The layers of a graph do not follow from each other by one step."""


def shallow_config(config: Any) -> Any:
    """A model's config with `SHALLOW` layers in tower and decoder, the features taken from the tower's last.

    Layers of a decoder to which something is added come on top; of the tower none is tapped.
    """
    config = copy.deepcopy(config)
    added = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    if added:  # layers behind the last, so that none of the tower's is tapped, and the decoder has as many inputs
        config.vision_config.deepstack_visual_indexes = list(range(SHALLOW, SHALLOW + added))
    for part, layers in ((config.text_config, added + SHALLOW), (config.vision_config, SHALLOW)):
        part.num_hidden_layers = layers
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:layers]
    if hasattr(config, "vision_feature_layer"):
        last = config.vision_feature_layer == -1  # which some towers norm
        config.vision_feature_layer = -1 if last else SHALLOW
    return config


def can_deepen(stage: Stage) -> bool:
    """Whether a stage has more than `SHALLOW` layers that are alike, of the same modules with the same settings and shapes."""
    stack = stage.stack
    if stack is None or stack.layers - stack.unlike <= SHALLOW:
        return False
    layers: Any = stage.module.get_submodule(stack.path)
    return len({_settings(layers[number]) for number in range(stack.unlike + 1, stack.layers)}) == 1


def _settings(layer: nn.Module) -> str:
    found: list[Any] = [(name, tensor.shape) for name, tensor in layer.state_dict().items()]
    for path, module in layer.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
        plain.pop("layer_idx", None)
        found.append((path, type(module), sorted(plain.items())))
    return repr(found)


def deepen(model: ir.Model, stage: Stage) -> ir.Model:
    """Extend the graph of a stage's first layers, `SHALLOW` of them alike, to all its layers.

    Args:
        model: the graph as it was traced, without the weights' values; left as it is.
        stage: the deep stage, for which `can_deepen` holds.

    Returns:
        The stage's graph, as if traced whole.

    Raises:
        UnlikeLayersError: the second layer and the third differ in more than their weights and what they pass on.
    """
    assert stage.stack is not None
    model = model.clone()
    graph, path, last = model.graph, stage.stack.path, stage.stack.unlike + SHALLOW - 1
    second, third = _nodes(graph, path, last - 1), _nodes(graph, path, last)
    step = _step(second, third, path, last)
    layers = {*second, *third}
    behind = {node: None for node in graph if node not in layers}
    if any(user in behind for node in second for value in node.outputs for user in value.consumers()):
        raise UnlikeLayersError("the second layer is read by more than the third")

    layer, by_number = third, {last - 1: second, last: third}
    for number in range(last + 1, stage.stack.layers):
        layer, step = _next(graph, layer, step, path, number)
        by_number[number] = layer
    if stage.stack.taps:
        _tap(graph, stage, third, by_number, behind)
    ends = {a: b for one, two in zip(third, layer, strict=True) for a, b in zip(one.outputs, two.outputs, strict=True)}
    for node in behind:
        for index, value in enumerate(node.inputs):
            if value in ends:
                node.replace_input_with(index, ends[value])

    ports = [port.name for port in stage.outputs]
    for value, end in ends.items():
        if value in graph.outputs and end.name not in ports:  # not one output a layer, but the last layer's
            value.name, end.name = f"{value.name}.{last}", value.name
    used = (value for node in graph for value in (*node.inputs, *node.outputs) if value is not None)
    named = {value.name: value for value in (*graph.inputs, *used)}
    graph.inputs[:] = [named[port.name] for port in stage.inputs]
    graph.outputs[:] = [named[name] for name in ports]
    return model


def _tap(
    graph: ir.Graph,
    stage: Stage,
    third: list[ir.Node],
    layers: Mapping[int, list[ir.Node]],
    behind: Iterable[ir.Node],
) -> None:
    """Concatenate in an output what tapped layers give, brought there by the nodes that bring the third layer's result."""
    assert stage.stack is not None
    name = stage.stack.tapped
    port = next(port for port in stage.outputs if port.name == name)
    output = next(value for value in graph.outputs if value.name == name)
    reached = {value for node in third for value in node.outputs}
    leading = []
    for node in behind:
        if any(value in reached for value in node.inputs):
            reached |= set(node.outputs)
            leading.append(node)
    needed, wanted = set(), [output]
    while wanted:
        node = wanted.pop().producer()
        if node is not None and node in leading and node not in needed:
            needed.add(node)
            wanted += [value for value in node.inputs if value is not None]
    parts = [output]
    for number in stage.stack.taps:
        if number not in layers:
            raise UnlikeLayersError(f"layer {number} is tapped, which may be unlike the others")
        own = {
            a: b
            for one, two in zip(third, layers[number], strict=True)
            for a, b in zip(one.outputs, two.outputs, strict=True)
        }
        for node in leading:
            if node not in needed:
                continue
            inputs = [own.get(value, value) if value is not None else None for value in node.inputs]
            outputs = [
                ir.Value(name=f"{value.name}.{number}", type=value.type, shape=value.shape) for value in node.outputs
            ]
            own |= dict(zip(node.outputs, outputs, strict=True))
            made = ir.Node(
                node.domain, node.op_type, inputs, node.attributes, outputs=outputs, name=f"{node.name}.{number}"
            )
            graph.append(made)
        parts.append(own[output])
    output.name = f"{name}.last"
    whole = ir.Value(name=name, type=output.type, shape=ir.Shape(port.shape))
    graph.append(ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 1)], outputs=[whole], name=f"{name}.concat"))


def _nodes(graph: ir.Graph, path: str, number: int) -> list[ir.Node]:
    """The nodes of a layer, in the graph's order."""
    scope = f"module.{path}.{number}"
    return [node for node in graph if scope in node.meta.get(SCOPES, ())]


def _step(second: list[ir.Node], third: list[ir.Node], path: str, number: int) -> _Step:
    if not third or len(second) != len(third):
        raise UnlikeLayersError("the layers have not the same number of nodes")
    step: _Step = {}
    for one, two in zip(second, third, strict=True):
        if (one.domain, one.op_type, one.attributes) != (two.domain, two.op_type, two.attributes):
            raise UnlikeLayersError(f"'{one.name}' and '{two.name}' differ")
        for a, b in zip((*one.inputs, *one.outputs), (*two.inputs, *two.outputs), strict=True):
            if a is None or b is None:
                if a is not b:
                    raise UnlikeLayersError(f"'{one.name}' and '{two.name}' differ in their inputs")
            elif step.setdefault(a, b) is not b:
                raise UnlikeLayersError(f"'{a.name}' stands for more than one value")
    if len(set(step.values())) != len(step):
        raise UnlikeLayersError("two values have become one")
    made = {value for node in (*second, *third) for value in node.outputs}
    for a, b in step.items():
        if a is not b and b not in made and _renumbered(a, path, number) != b.name:
            raise UnlikeLayersError(f"'{a.name}' and '{b.name}' are no layer's own")
    return step


def _next(graph: ir.Graph, layer: list[ir.Node], step: _Step, path: str, number: int) -> tuple[list[ir.Node], _Step]:
    """Put layer `number` behind the layer before it, given the step that led to that one; returns its nodes and step."""
    following: _Step = {}

    def follow(value: ir.Value) -> ir.Value:
        if value not in following:
            following[value] = step[value] if value in step else new(value)
        return following[value]

    def new(value: ir.Value) -> ir.Value:
        name = _renumbered(value, path, number) or f"{value.name}.{number}"
        made = ir.Value(name=name, type=value.type, shape=value.shape)
        if value.is_initializer():
            graph.initializers.add(made)
        return made

    made = []
    for node in layer:
        inputs = [None if value is None else follow(value) for value in node.inputs]
        outputs = [follow(value) for value in node.outputs]
        name = f"{node.name}.{number}"
        made.append(ir.Node(node.domain, node.op_type, inputs, node.attributes, outputs=outputs, name=name))
    graph.insert_after(layer[-1], made)
    return made, following


def _renumbered(value: ir.Value, path: str, number: int) -> str | None:
    """Name of the value that belongs to layer `number` as `value` belongs to the one before; None if it has no number.

    Weights are named after their module, inputs and outputs end with the number.
    """
    name, before = str(value.name), number - 1
    if name.startswith(f"{path}.{before}."):
        return f"{path}.{number}.{name.removeprefix(f'{path}.{before}.')}"
    return f"{name.removesuffix(f'.{before}')}.{number}" if name.endswith(f".{before}") else None
