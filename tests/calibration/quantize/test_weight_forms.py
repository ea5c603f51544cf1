"""Weight-only int4 and dynamic int8 against exact arithmetic, on ONNX Runtime and onnx's own reference."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from rediprune.calibration.quantize import int4, int8_dynamic
from rediprune.calibration.quantize.linear_layers import linear_layers
from rediprune.runtime.errors import RedipruneError


def graph(*weights: np.ndarray) -> ir.Model:
    """x [b, s, in] → one product with each of the weights [in, out], all of one dtype."""
    dtype = ir.DataType.from_numpy(weights[0].dtype)
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(["b", "s", weights[0].shape[0]]))
    nodes, values = [], []
    for at, weight in enumerate(weights):
        tensor = ir.tensor(weight, name=f"fc{at}.weight.T")
        values.append(ir.Value(name=tensor.name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor))
        node = ir.node("MatMul", [x, values[-1]])
        node.outputs[0].name, node.outputs[0].type = f"y{at}", ir.TensorType(dtype)
        node.outputs[0].shape = ir.Shape(["b", "s", weight.shape[1]])
        nodes.append(node)
    outputs = [node.outputs[0] for node in nodes]
    return ir.Model(ir.Graph([x], outputs, nodes=nodes, initializers=values, opset_imports={"": 24}), ir_version=11)


def run(model: ir.Model | Path, x: np.ndarray) -> list[np.ndarray]:
    source = model if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    options = ort.SessionOptions()
    # ONNX Runtime else rounds the activations of int4 products to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, {"x": x})]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def constant(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


matrices = st.builds(
    lambda blocks, block, out, seed, exponent, zeros: (
        random(blocks * block, out, seed=seed)
        * np.float32(10.0**exponent)
        * (np.arange(blocks * block) >= zeros * block)[:, None]
    ),
    st.integers(1, 3),
    st.sampled_from(int4.BLOCKS),
    st.integers(1, 9),
    st.integers(0, 99),
    st.integers(-40, 30),
    st.integers(0, 3),
)


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_int4_is_within_half_a_step_of_every_weight(weight: np.ndarray) -> None:
    model = graph(weight)
    int4.quantize(model, linear_layers(model))
    block = int4.block_size(len(weight))
    assert block is not None
    scales = np.repeat(constant(model, "fc0.weight.scale"), block, axis=0)
    integers = constant(model, "fc0.weight.int4").astype(np.float32)
    assert np.abs(integers).max(initial=0) <= 7
    assert (scales > 0).all()
    # The division and the product round once each; the scale itself may be the least float there is.
    bound = scales * np.float64(0.5) * (1 + 1e-5) + np.finfo(np.float32).smallest_subnormal * 8
    assert (np.abs(integers.astype(np.float64) * scales - weight) <= bound).all()


@pytest.mark.parametrize("width", [16, 192, 256])
def test_int4_reads_back_the_same_everywhere(tmp_path: Path, width: int) -> None:
    """What is stored, unpacked by onnx's reference, is the formula's; ONNX Runtime multiplies with exactly that."""
    weight, x = random(width, 7), random(2, 3, width, seed=1)
    model = graph(weight)
    int4.quantize(model, linear_layers(model))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    block = {16: 16, 192: 64, 256: 128}[width]
    blocks = weight.reshape(-1, block, 7)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(7)
    expected = (np.rint(blocks / scales) * scales).reshape(weight.shape)
    loaded = onnx.load(tmp_path / "m.onnx")
    matrix = next(node.output[0] for node in loaded.graph.node if node.op_type == "DequantizeLinear")
    loaded.graph.output.append(onnx.helper.make_tensor_value_info(matrix, onnx.TensorProto.FLOAT, weight.shape))
    y, stored = ReferenceEvaluator(loaded).run(None, {"x": x})
    assert np.array_equal(stored, expected)
    (engine,) = run(tmp_path / "m.onnx", x)
    for product in (y, engine):
        assert np.allclose(product, x.astype(np.float64) @ expected, atol=1e-5 * width)


def test_int4_keeps_what_it_cannot_divide() -> None:
    weight = random(24, 5)
    model = graph(weight)
    int4.quantize(model, linear_layers(model))
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert np.array_equal(constant(model, "fc0.weight.T"), weight)


def test_int4_of_a_half_precision_graph_stays_there() -> None:
    weight = random(32, 4).astype(np.float16)
    weight[:, 0] = np.float16(1e-7)  # its scale underflows
    model = graph(weight)
    int4.quantize(model, linear_layers(model))
    assert constant(model, "fc0.weight.scale").dtype == np.float16
    x = random(1, 2, 32).astype(np.float16)
    (y,) = run(model, x)
    assert y.dtype == np.float16
    scales = np.repeat(constant(model, "fc0.weight.scale").astype(np.float64), 32, axis=0)
    assert np.allclose(y, x.astype(np.float64) @ (constant(model, "fc0.weight.int4").astype(float) * scales), atol=0.05)


def correlated(count: int, width: int, seed: int) -> np.ndarray:
    """Rows [count, width] as in a network: a few directions and outlier channels carry most of them."""
    mixing = random(width // 8, width, seed=99) * np.exp(random(width, seed=98))
    return random(count, width // 8, seed=seed) @ mixing + 0.1 * random(count, width, seed=seed + 1)


def test_samples_lessen_the_error_on_other_tokens() -> None:
    width, seen, unseen = 192, correlated(600, 192, 1), correlated(200, 192, 3)
    weight, errors = random(width, 48), []
    for samples in (None, {"x": seen}):
        model = graph(weight)
        int4.quantize(model, linear_layers(model), samples)
        (y,) = run(model, unseen[None])
        errors.append(np.linalg.norm(y - unseen @ weight) / np.linalg.norm(unseen @ weight))
    assert errors[1] < 0.5 * errors[0]


def test_uncorrelated_samples_change_nothing() -> None:
    """With independent inputs of one size the errors cannot be made up for: GPTQ is rounding to the nearest."""
    weight = random(64, 9)
    models = [graph(weight), graph(weight)]
    for model, samples in zip(models, (None, {"x": np.eye(64, dtype=np.float32) * 3}), strict=True):
        int4.quantize(model, linear_layers(model), samples)
    nearest, gptq = (constant(model, "fc0.weight.int4").astype(int) for model in models)
    assert np.array_equal(nearest, gptq)


@pytest.mark.parametrize("rows", [np.zeros((5, 32), np.float32), np.ones((1, 32), np.float32) * 1e4])
def test_samples_that_say_little_are_no_trouble(rows: np.ndarray) -> None:
    weight = random(32, 6)
    model = graph(weight)
    int4.quantize(model, linear_layers(model), {"x": rows})
    scales = np.repeat(constant(model, "fc0.weight.scale"), 32, axis=0)
    restored = constant(model, "fc0.weight.int4").astype(np.float32) * scales
    assert np.linalg.norm(rows @ (restored - weight)) <= 0.1 * np.linalg.norm(rows @ weight)


def exact_int8(x: np.ndarray, weight: np.ndarray, largest: int) -> np.ndarray:
    """The formula in integers: every row and every column by its own scale."""
    rows = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30)) * np.float32(1 / 127)
    columns = np.abs(weight).max(axis=0) / np.float32(largest)
    columns[columns == 0] = 1
    product = np.rint(x / rows).astype(np.int64) @ np.rint(weight / columns).astype(np.int64)
    return product * rows.astype(np.float64) * columns


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 63)])
@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 300), out=st.integers(1, 40), tokens=st.integers(1, 9), seed=st.integers(0, 99), data=st.data()
)
def test_int8_products_are_exact(
    reduce_range: bool, largest: int, width: int, out: int, tokens: int, seed: int, data: st.DataObject
) -> None:
    """Adversarial values: all at the ends of the range, where 16-bit sums overflow; also zero rows and columns."""
    random = np.random.default_rng(seed)
    weight = random.choice([-1.0, 0.5, 1.0], (width, out)).astype(np.float32)
    x = random.choice([-3.0, 3.0], (1, tokens, width)).astype(np.float32)
    if data.draw(st.booleans()):
        weight, x = np.abs(weight), np.abs(x)
    if data.draw(st.booleans()):
        weight[:, 0] = x[:, 0] = 0
    model = graph(weight)
    int8_dynamic.quantize(model, linear_layers(model), reduce_range=reduce_range)
    (y,) = run(model, x)
    assert np.allclose(y, exact_int8(x, weight, largest), rtol=1e-5, atol=0)


def test_int8_rows_do_not_pay_for_another_row() -> None:
    """An attention sink a thousand times larger than the rest: with one scale for all, the rest rounds to nothing."""
    x, weight = random(1, 20, 256), random(256, 64, seed=1)
    x[0, 3] *= 1000
    model = graph(weight)
    int8_dynamic.quantize(model, linear_layers(model))
    (y,) = run(model, x)
    exact = x.astype(np.float64) @ weight
    errors = np.linalg.norm(y - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert errors.max() < 0.02


def test_int8_quantises_a_shared_input_once() -> None:
    weights = [random(32, 8, seed=seed) for seed in range(3)]
    model = graph(*weights)
    x = random(2, 5, 32, seed=9)
    int8_dynamic.quantize(model, linear_layers(model))
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    assert [value.name for value in model.graph.outputs] == ["y0", "y1", "y2"]
    for y, weight in zip(run(model, x), weights, strict=True):
        assert np.allclose(y, exact_int8(x, weight, 127), rtol=1e-5, atol=1e-6)


def test_int8_wants_float32() -> None:
    model = graph(random(32, 4).astype(np.float16))
    with pytest.raises(RedipruneError, match="'fc0' is computed in float16"):
        int8_dynamic.quantize(model, linear_layers(model))


@pytest.mark.parametrize("quantize", [int4.quantize, int8_dynamic.quantize])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(quantize: object, bad: float) -> None:
    weights = [random(32, 4), random(32, 4)]
    weights[1][7, 2] = bad
    model = graph(*weights)
    assert callable(quantize)
    with pytest.raises(RedipruneError, match=r"'fc1' has infinite or NaN"):
        quantize(model, linear_layers(model))
