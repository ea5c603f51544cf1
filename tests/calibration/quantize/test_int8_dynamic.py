"""Dynamic INT8 against exact integer arithmetic, on ONNX Runtime."""

import numpy as np
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
    rows = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30)) * np.float32(1 / 127)
    columns = np.abs(weight).max(axis=0) / np.float32(largest)
    columns[columns == 0] = 1
    product = np.rint(x / rows).astype(np.int64) @ np.rint(weight / columns).astype(np.int64)
    return product * rows.astype(np.float64) * columns


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
