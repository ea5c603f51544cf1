"""INT8 and FP8 as Q/DQ: number by number as onnxruntime.quantization has it, and read back alike everywhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rediprune.calibration.quantize.activation_ranges import Activation
from rediprune.calibration.quantize.linear_layer_pass import UnsuitableGraphError
from rediprune.calibration.quantize.qdq import FP8, INT8, NumberFormat, QdqPass


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def seen(x: np.ndarray) -> Activation:
    """What an input x [..., C] held."""
    rows = x.reshape(-1, x.shape[-1])
    return Activation(np.abs(rows).max(axis=0), rows)


class Samples(CalibrationDataReader):
    def __init__(self, *samples: np.ndarray):
        self.samples = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        x = next(self.samples, None)
        return None if x is None else {"x": x}


def stored(model: onnx.ModelProto, product: onnx.NodeProto) -> dict[str, np.ndarray]:
    """A layer's stored numbers by what they are for: what the two DequantizeLinear before a MatMul read."""
    producer = {name: node for node in model.graph.node for name in node.output}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    activation, weight = (producer[name] for name in product.input)
    assert activation.op_type == weight.op_type == "DequantizeLinear"
    assert producer[activation.input[0]].op_type == "QuantizeLinear"
    names = {"input scale": activation.input[1], "input zero": activation.input[2]}
    names |= {"weight": weight.input[0], "weight scale": weight.input[1], "weight zero": weight.input[2]}
    return {what: np.squeeze(arrays[name]) for what, name in names.items()}


def test_int8_is_what_onnxruntimes_own_quantiser_makes(products_of, tmp_path: Path) -> None:
    """Two layers of one input, symmetric, per channel: scales, zero points and integers, one by one."""
    weights = [random(48, 7, seed=1), random(48, 5, seed=2) * np.float32(1e-3)]
    x = random(4, 9, 48, seed=3)
    model = products_of(*weights)
    ir.save(model, tmp_path / "float.onnx")
    QdqPass(INT8, {"x": seen(x)})(model)
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        Samples(*x[:, None]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "DedicatedQDQPair": True},
    )
    ours, theirs = ir.to_proto(model), onnx.load(tmp_path / "theirs.onnx")
    products = [[n for n in each.graph.node if n.op_type == "MatMul"] for each in (ours, theirs)]
    assert len(products[0]) == 2
    for one, other in zip(*products, strict=True):
        mine, other_numbers = stored(ours, one), stored(theirs, other)
        assert np.array_equal(mine["weight"], other_numbers["weight"])
        assert np.array_equal(mine["weight zero"], other_numbers["weight zero"])
        assert not mine["input zero"].any() and not other_numbers["input zero"].any()
        for scale in ("input scale", "weight scale"):
            assert np.allclose(mine[scale], other_numbers[scale], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_int8_reads_back_the_same_everywhere(products_of, answers_of, smoothing: float | None) -> None:
    """What is stored is the formula's, in onnx's reference; ONNX Runtime's fused integer product agrees."""
    weight, x = random(64, 9, seed=1), random(1, 11, 64, seed=2)
    x[..., 5] *= 30  # an outlier channel
    model = products_of(weight)
    QdqPass(INT8, {"x": seen(x)}, smoothing=smoothing)(model)
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    (engine,) = answers_of(model, x)
    factors = np.ones(64, np.float32)
    if smoothing is not None:
        factors = np.abs(x[0]).max(axis=0) ** smoothing / np.abs(weight).max(axis=1) ** (1 - smoothing)
    smoothed, scaled = x / factors, weight * factors[:, None]
    steps = np.abs(smoothed).max() / 127, np.abs(scaled).max(axis=0) / 127
    expected = (np.rint(smoothed / steps[0]) * steps[0]) @ (np.rint(scaled / steps[1]) * steps[1])
    # A value halfway between two integers may be rounded either way.
    assert np.allclose(y, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())
    assert np.linalg.norm(y - expected) < 2e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(engine - y) < 2e-3 * np.linalg.norm(y)


def test_smoothing_spares_what_an_outlier_channel_would_cost(products_of, answers_of) -> None:
    weight, x = random(64, 9, seed=1), random(1, 40, 64, seed=2)
    x[..., 5] *= 200
    errors = {}
    for smoothing in (None, 0.5):
        model = products_of(weight)
        QdqPass(INT8, {"x": seen(x)}, smoothing=smoothing)(model)
        (y,) = answers_of(model, x)
        others = np.delete(weight, 5, axis=0)
        rest = (
            np.delete(x, 5, axis=-1).astype(np.float64) @ others
        )  # what is left where the outlier's own part is taken off
        errors[smoothing] = np.linalg.norm(y - x.astype(np.float64) @ weight) / np.linalg.norm(rest)
    assert errors[0.5] < errors[None] / 5


formats = st.sampled_from([INT8, FP8])


@settings(max_examples=60, deadline=None)
@given(formats, st.integers(0, 99), st.integers(-30, 30), st.booleans())
def test_every_weight_is_within_half_a_step(
    products_of, constant_of, number_format: NumberFormat, seed: int, exponent: int, zeros: bool
) -> None:
    weight = random(24, 6, seed=seed) * np.float32(10.0**exponent)
    weight[:, 0] *= not zeros
    model = products_of(weight)
    QdqPass(number_format, {"x": seen(random(1, 3, 24))})(model)
    scales = constant_of(model, "fc0.weight.scale").astype(np.float64)
    numbers = constant_of(model, f"fc0.weight.{number_format.name}").astype(np.float64)
    assert (scales > 0).all() and np.isfinite(numbers).all()
    assert np.abs(numbers).max(initial=0) <= number_format.largest
    # FP8 has 3 bits behind the point, and subnormal numbers of 2⁻⁹.
    step = scales if number_format is INT8 else scales * np.maximum(np.abs(numbers) * 2.0**-3, 2.0**-9)
    assert (np.abs(numbers * scales - weight) <= 0.5 * step * (1 + 1e-5) + 1e-44).all()


@settings(max_examples=30, deadline=None)
@given(formats, st.floats(-1e4, 1e4))
def test_what_lies_beyond_the_range_is_cut_off(number_format: NumberFormat, value: float) -> None:
    (number,) = number_format.round(np.array([value], np.float32)).astype(np.float64)
    assert abs(number) <= number_format.largest
    if abs(value) >= number_format.largest:
        assert number == np.sign(value) * number_format.largest


def test_an_input_that_was_always_zero_has_a_scale(products_of, answers_of) -> None:
    model = products_of(random(16, 3))
    QdqPass(INT8, {"x": Activation(np.zeros(16, np.float32), np.zeros((4, 16), np.float32))}, smoothing=0.75)(model)
    (y,) = answers_of(model, np.zeros((1, 2, 16), np.float32))
    assert np.array_equal(y, np.zeros((1, 2, 3)))


def test_a_half_precision_graph_stays_there(products_of, constant_of) -> None:
    model = products_of(random(16, 3).astype(np.float16))
    QdqPass(INT8, {"x": seen(random(1, 5, 16))})(model)
    assert constant_of(model, "fc0.weight.scale").dtype == constant_of(model, "fc0.input.scale").dtype == np.float16
    assert all(value.dtype == ir.DataType.FLOAT16 for value in model.graph.outputs)


def test_a_layer_that_no_sample_reached_is_refused(products_of: Callable[..., ir.Model]) -> None:
    model = products_of(random(16, 3))
    with pytest.raises(UnsuitableGraphError, match="no sample reached layer 'fc0'"):
        QdqPass(INT8, {})(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
