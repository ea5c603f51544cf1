"""What stays in float32 is listed, and a part that is on no list is refused instead of guessed at."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from rediprune.calibration.bundle_graphs import load_graph
from rediprune.calibration.quantize.float16 import HalfPrecisionPass
from rediprune.calibration.quantize.linear_layer_pass import UnsuitableGraphError
from rediprune.runtime.bundle import Bundle

pytestmark = pytest.mark.calibration

LAYERS = 2  # of the tiny decoders and of the CLIP towers
NORMS = {
    "llava": 2 * LAYERS + 1,
    "llava_siglip": 2 * 3,
    "llava_next_video": 2 * LAYERS + 1,
    "video_llava": 2 * LAYERS + 1,
}


def float32() -> ir.TensorType:
    """One for each value: giving a value another dtype changes its type in place."""
    return ir.TensorType(ir.DataType.FLOAT)


def graph(nodes: Sequence[ir.Node], *constants: ir.Value) -> ir.Model:
    """Nodes in their order, the first one's first input x [n, 8], the last one's output y."""
    for node in nodes:
        node.outputs[0].type = node.outputs[0].type or float32()
    x, y = nodes[0].inputs[0], nodes[-1].outputs[0]
    assert x is not None
    y.name, y.shape = "y", ir.Shape(["n", 8])
    made = ir.Graph([x], [y], nodes=nodes, initializers=constants, opset_imports={"": 24})
    return ir.Model(made, ir_version=11)


def constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def value() -> ir.Value:
    return ir.Value(name="x", type=float32(), shape=ir.Shape(["n", 8]))


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("name", list(NORMS))
def test_every_island_of_every_family_is_listed(name: str, half: ir.DataType, bundle_of) -> None:
    bundle = Bundle.open(bundle_of(name))
    cache = {"KV cache": LAYERS} if half == ir.DataType.BFLOAT16 else {}  # of values; keys join the rotation
    expected = {
        "vision": {"norm": NORMS[name]},
        "vision_video": {"norm": NORMS[name]},
        "project": {},
        "embed": {},
        "language": {"norm": 2 * LAYERS + 1, "rotary embedding": 1} | cache,
    }
    for stage in set(bundle.manifest.stages) - {"select", "select_clip"}:
        halve = HalfPrecisionPass(half)
        halve(load_graph(bundle, stage))
        assert Counter(island.kind for island in halve.islands) == expected[stage], stage


def rms_norm(square: str, *, mean: str = "ReduceMean", learned: bool = True) -> ir.Model:
    """An RMSNorm in single operators; in half precision the square of 300 is infinite."""
    x, two = value(), constant("two", np.float32(2))
    axis, scale = constant("axis", np.array([-1])), constant("norm.weight", np.ones(8 if learned else 1, np.float32))
    nodes = [ir.node("Mul", [x, x]) if square == "Mul" else ir.node("Pow", [x, two])]
    nodes.append(ir.node(mean, [nodes[-1].outputs[0], axis]))
    nodes.append(ir.node("Sqrt", nodes[-1].outputs))
    nodes.append(ir.node("Div", [x, nodes[-1].outputs[0]]))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], scale]))
    return graph(nodes, axis, scale, *([two] if square != "Mul" else []))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_norm_is_found_whichever_way_it_squares(square: str, answers_of) -> None:
    model = rms_norm(square)
    halve = HalfPrecisionPass(ir.DataType.FLOAT16)
    halve(model)
    (island,) = halve.islands
    assert island.kind == "norm" and len(island.nodes) == 5
    (y,) = answers_of(model, np.full((2, 8), 300, np.float16))
    assert np.array_equal(y, np.ones((2, 8)))


def test_a_norm_in_other_operators_is_refused_by_name() -> None:
    with pytest.raises(UnsuitableGraphError, match=r"around .*\(Pow, ReduceSum, Sqrt, Div, Mul\).*--precision fp16"):
        HalfPrecisionPass(ir.DataType.FLOAT16)(rms_norm("Pow", mean="ReduceSum"))


def test_a_norm_without_a_scale_does_not_take_the_rest_into_float32_unsaid() -> None:
    model = rms_norm("Pow", learned=False)
    graph = model.graph
    last = graph.outputs[0]
    last.name = "normed"
    more = ir.node("Relu", [last])
    more.outputs[0].name, more.outputs[0].type, more.outputs[0].shape = "y", float32(), last.shape
    graph.append(more)
    graph.outputs[0] = more.outputs[0]
    with pytest.raises(UnsuitableGraphError, match=r"Mul, Relu\)"):
        HalfPrecisionPass(ir.DataType.FLOAT16)(model)


@pytest.mark.parametrize("operator", ["Log", "CumSum", "Softplus"])
def test_an_operator_of_which_half_is_not_known_to_do_is_refused(operator: str) -> None:
    axis = constant("axis", np.array(1))
    given = [value(), axis] if operator == "CumSum" else [value()]
    model = graph([ir.node(operator, given)], *given[1:])
    with pytest.raises(UnsuitableGraphError, match=f"'y' is computed by {operator}, .*--precision fp16"):
        HalfPrecisionPass(ir.DataType.FLOAT16)(model)
