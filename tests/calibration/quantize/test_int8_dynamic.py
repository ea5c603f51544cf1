"""Dynamic INT8 against exact integer arithmetic, on ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.calibration.quantize.int8_dynamic import DynamicInt8Pass
from rediprune.runtime.backends import ort
from rediprune.runtime.errors import RedipruneError


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact_int8(x: np.ndarray, weight: np.ndarray, largest: int) -> np.ndarray:
    """The formula in integers: every row and every column by its own scale."""
    magnitudes, step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30)), np.float32(1 / 127)
    columns = np.abs(weight).max(axis=0) / np.float32(largest)
    columns[columns == 0] = 1
    rows = np.rint(x * (1 / magnitudes) / step).astype(np.int64)
    product = rows @ np.rint(weight / columns).astype(np.int64)
    return product * (magnitudes.astype(np.float64) * step) * columns


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 300), out=st.integers(1, 40), tokens=st.integers(1, 9), seed=st.integers(0, 99), data=st.data()
)
def test_int8_products_are_exact(
    products_of,
    answers_of,
    width: int,
    out: int,
    tokens: int,
    seed: int,
    data: st.DataObject,
) -> None:
    """Adversarial values: all at the ends of the range, where 16-bit sums overflow; also zero rows and columns."""
    random = np.random.default_rng(seed)
    weight = random.choice([-1.0, 0.5, 1.0], (width, out)).astype(np.float32)
    x = random.choice([-3.0, 3.0], (1, tokens, width)).astype(np.float32)
    if data.draw(st.booleans()):
        weight, x = np.abs(weight), np.abs(x)
    if data.draw(st.booleans()):
        weight[:, 0] = x[:, 0] = 0
    model = products_of(weight)
    DynamicInt8Pass()(model)
    (y,) = answers_of(model, x)
    assert np.allclose(y, exact_int8(x, weight, 127), rtol=1e-5, atol=0)


def test_int8_rows_do_not_pay_for_another_row(products_of, answers_of) -> None:
    """An attention sink a thousand times larger than the rest: with one scale for all, the rest rounds to nothing."""
    x, weight = random(1, 20, 256), random(256, 64, seed=1)
    x[0, 3] *= 1000
    model = products_of(weight)
    DynamicInt8Pass()(model)
    (y,) = answers_of(model, x)
    exact = x.astype(np.float64) @ weight
    errors = np.linalg.norm(y - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert errors.max() < 0.02


def test_int8_quantises_a_shared_input_once(products_of, answers_of) -> None:
    weights = [random(32, 8, seed=seed) for seed in range(3)]
    model = products_of(*weights)
    x = random(2, 5, 32, seed=9)
    DynamicInt8Pass()(model)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    assert [value.name for value in model.graph.outputs] == ["y0", "y1", "y2"]
    for y, weight in zip(answers_of(model, x), weights, strict=True):
        assert np.allclose(y, exact_int8(x, weight, 127), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("also_read", [False, True])
def test_int8_of_a_gated_activation_multiplies_its_rows_once(answers_of, also_read: bool) -> None:
    """Of act · (x · U) the rows' scales are multiplied by behind the next product, unless something else reads it."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        gated (float[b, s, 32] x) => (float[b, s, 8] y{", float[b, s, 48] g" if also_read else ""})
        {{
            a = MatMul (x, gate)
            u = MatMul (x, up)
            act = Sigmoid (a)
            g = Mul (act, u)
            y = MatMul (g, down)
        }}"""
    weights = {"gate": random(32, 48), "up": random(32, 48, seed=1), "down": random(48, 8, seed=2)}
    model = ir.from_onnx_text(text.replace("x) =>", "x, float[32, 48] gate, float[32, 48] up, float[48, 8] down) =>"))
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    x = random(2, 5, 32, seed=9)
    x[0, 0] = 0
    DynamicInt8Pass()(model)
    # A product each of rows with their inverses, of results with their rows' scales, and of the gate.
    assert sum(node.op_type == "Mul" for node in model.graph) == 2 + 3 + 1
    a, u = (exact_int8(x, weights[name], 127).astype(np.float32) for name in ("gate", "up"))
    g = u / (1 + np.exp(-a))
    y, *others = answers_of(model, x)
    assert np.allclose(y, exact_int8(g, weights["down"], 127), rtol=1e-4, atol=0.02 * np.abs(y).max())
    for other in others:
        assert np.allclose(other, g, rtol=1e-5, atol=1e-6)
    if not also_read:
        (quantised,) = (node for node in model.graph if node.op_type == "Mul" and node.inputs[0].name == "act")
        assert quantised.inputs[1].producer().op_type == "MatMulIntegerToFloat"


def test_int8_wants_float32(products_of) -> None:
    model = products_of(random(32, 4).astype(np.float16))
    with pytest.raises(RedipruneError, match="'fc0' is computed in float16"):
        DynamicInt8Pass()(model)


def test_int8_products_are_exact_on_processors_without_vnni(
    products_of, answers_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There ONNX Runtime makes the weights unsigned as it loads the graph, here too where it is asked to."""
    monkeypatch.setattr(ort, "has_vnni", lambda: False)
    weights = [np.abs(random(300, 40, seed=seed)) for seed in range(2)]
    x = np.full((1, 5, 300), 3, np.float32)
    model = products_of(*weights)
    DynamicInt8Pass()(model)
    for y, weight in zip(answers_of(model, x), weights, strict=True):
        assert np.allclose(y, exact_int8(x, weight, 127), rtol=1e-5, atol=0)
