"""SmoothQuant moves outliers into the weights without changing what a layer computes."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from rediprune.calibration.quantize.linear_layers import linear_layers
from rediprune.calibration.quantize.smoothquant import divide_input, is_learned_vector, smoothing_factors

WIDTH = 16


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(norm: str, readers: int = 2, others: int = 0) -> ir.Model:
    """x [n, 16] → a norm → products with `readers` weights, and `others` that read the norm's result too."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    constants: list[ir.Value] = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        constants.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor))
        return constants[-1]

    x = ir.Value(name="x", type=float32, shape=ir.Shape(["n", WIDTH]))
    scale, bias = constant("norm.weight", 1 + 0.3 * random(WIDTH)), constant("norm.bias", random(WIDTH, seed=1))
    nodes = []
    match norm:
        case "LayerNormalization":
            nodes.append(ir.node(norm, [x, scale, bias]))
        case "RMSNormalization":
            nodes.append(ir.node(norm, [x, scale]))
        case "Mul":
            nodes.append(ir.node("Sigmoid", [x]))
            nodes.append(ir.node("Mul", [nodes[0].outputs[0], scale]))
        case _:
            nodes.append(ir.node(norm, [x]))
    hidden = nodes[-1].outputs[0]
    hidden.name, hidden.type, hidden.shape = "hidden", float32, x.shape
    for at in range(readers):
        nodes.append(ir.node("MatMul", [hidden, constant(f"fc{at}.weight.T", random(WIDTH, 3 + at, seed=at + 2))]))
    nodes += [ir.node("Relu", [hidden]) for _ in range(others)]
    outputs = [node.outputs[0] for node in nodes if node.op_type in ("MatMul", "Relu") and node.inputs[0] is hidden]
    for at, value in enumerate(outputs):
        value.name, value.type, value.shape = f"y{at}", float32, ir.Shape(["n", None])
    made = ir.Graph([x], outputs, nodes=nodes, initializers=constants, opset_imports={"": 24})
    return ir.Model(made, ir_version=11)


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(y) for y in ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})]


@pytest.mark.parametrize(
    ("norm", "others", "folded"),
    [
        ("LayerNormalization", 0, True),
        ("RMSNormalization", 0, True),
        ("Mul", 0, True),
        ("Relu", 0, False),  # no norm that could take the division over
        ("LayerNormalization", 1, False),  # somebody else reads the norm's result
    ],
)
def test_a_layer_computes_what_it_did(norm: str, others: int, folded: bool) -> None:
    model, x = graph(norm, others=others), random(7, WIDTH, seed=9)
    before = run(model, x)
    layers = linear_layers(model)
    factors = smoothing_factors(np.abs(x).max(axis=0), layers, 0.6)
    assert factors.std() > 0.1
    value = divide_input(model, layers, factors)
    for layer in layers:
        tensor = ir.tensor(layer.weight() * factors[:, None], name=f"{layer.name}.scaled")
        new = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        model.graph.register_initializer(new)
        layer.node.replace_input_with(0, value)
        layer.node.replace_input_with(1, new)
    assert (value.name == "hidden") == folded
    assert sum(node.op_type == "Mul" for node in model.graph) == (norm == "Mul") + (not folded)
    for y, expected in zip(run(model, x), before, strict=True):
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.integers(0, 99), st.integers(0, WIDTH - 1))
def test_factors_follow_the_papers_formula(smoothing: float, seed: int, dead: int) -> None:
    model = graph("Relu", readers=2)
    layers = linear_layers(model)
    largest = np.abs(random(WIDTH, seed=seed)) + np.float32(0.01)
    largest[dead] = 0  # a channel that is never used stays as it is
    factors = smoothing_factors(largest, layers, smoothing)
    weights = np.max([np.abs(layer.weight()).max(axis=1) for layer in layers], axis=0)
    expected = largest.astype(np.float64) ** smoothing / weights.astype(np.float64) ** (1 - smoothing)
    expected[dead] = 1
    assert factors.dtype == np.float32
    assert np.allclose(factors, expected, rtol=1e-5)


def test_only_a_constant_per_channel_is_a_learned_vector() -> None:
    def value(array: np.ndarray | None) -> ir.Value:
        return ir.Value(name="v", const_value=None if array is None else ir.tensor(array, name="v"))

    assert is_learned_vector(value(np.ones(4, np.float32)))
    for other in (None, np.ones((), np.float32), np.ones(1, np.float32), np.ones((2, 2), np.float32)):
        assert not is_learned_vector(value(other))
