"""Weight-only INT4 against exact arithmetic, on ONNX Runtime and onnx's own reference."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.quant_utils import QuantFormat
from rediprune.calibration.quantize.block_weights import BLOCKS, Int4WeightPass, Int8WeightPass, block_size


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


matrices = st.builds(
    lambda blocks, block, out, seed, exponent, zeros: (
        random(blocks * block, out, seed=seed)
        * np.float32(10.0**exponent)
        * (np.arange(blocks * block) >= zeros * block)[:, None]
    ),
    st.integers(1, 3),
    st.sampled_from(BLOCKS),
    st.integers(1, 9),
    st.integers(0, 99),
    st.integers(-40, 30),
    st.integers(0, 3),
)


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_int4_is_within_half_a_step_of_every_weight(products_of, constant_of, weight: np.ndarray) -> None:
    model = products_of(weight)
    Int4WeightPass()(model)
    block = block_size(len(weight))
    assert block is not None
    scales = np.repeat(constant_of(model, "fc0.weight.scale"), block, axis=0)
    integers = constant_of(model, "fc0.weight.int4").astype(np.float32)
    assert np.abs(integers).max(initial=0) <= 7
    assert (scales > 0).all()
    # The division and the product round once each; the scale itself may be the least float there is.
    bound = scales * np.float64(0.5) * (1 + 1e-5) + np.finfo(np.float32).smallest_subnormal * 8
    assert (np.abs(integers.astype(np.float64) * scales - weight) <= bound).all()


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_int8_is_within_half_a_step_of_every_weight(products_of, constant_of, weight: np.ndarray) -> None:
    model = products_of(weight)
    Int8WeightPass()(model)
    block = block_size(len(weight))
    assert block is not None
    scales = np.repeat(constant_of(model, "fc0.weight.scale"), block, axis=0)
    integers = constant_of(model, "fc0.weight.int8").astype(np.float64)
    assert np.abs(integers).max(initial=0) <= 127
    bound = scales * np.float64(0.5) * (1 + 1e-4) + np.finfo(np.float32).smallest_subnormal * 128
    assert (np.abs(integers * scales - weight) <= bound).all()


@pytest.mark.parametrize("width", [16, 192, 256])
def test_int4_reads_back_the_same_everywhere(products_of, answers_of, tmp_path: Path, width: int) -> None:
    """What is stored, unpacked by onnx's reference, is the formula's; ONNX Runtime multiplies with exactly that."""
    weight, x = random(width, 7), random(2, 3, width, seed=1)
    model = products_of(weight)
    Int4WeightPass()(model)
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
    (engine,) = answers_of(tmp_path / "m.onnx", x)
    for product in (y, engine):
        assert np.allclose(product, x.astype(np.float64) @ expected, atol=1e-5 * width)


def test_int4_keeps_what_it_cannot_divide(products_of, constant_of) -> None:
    weight = random(24, 5)
    model = products_of(weight)
    Int4WeightPass()(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert np.array_equal(constant_of(model, "fc0.weight.T"), weight)


def test_int4_of_a_half_precision_graph_stays_there(products_of, answers_of, constant_of) -> None:
    weight = random(32, 4).astype(np.float16)
    weight[:, 0] = np.float16(1e-7)  # its scale underflows
    model = products_of(weight)
    Int4WeightPass()(model)
    assert constant_of(model, "fc0.weight.scale").dtype == np.float16
    x = random(1, 2, 32).astype(np.float16)
    (y,) = answers_of(model, x)
    assert y.dtype == np.float16
    scales = np.repeat(constant_of(model, "fc0.weight.scale").astype(np.float64), 32, axis=0)
    assert np.allclose(
        y, x.astype(np.float64) @ (constant_of(model, "fc0.weight.int4").astype(float) * scales), atol=0.05
    )


def test_onnxruntimes_own_quantiser_writes_the_same_and_is_no_nearer(products_of, answers_of) -> None:
    """`MatMulNBitsQuantizer` maps a block's largest weight, with its sign, to −8; here its magnitude is 7, for TensorRT."""
    weight, x = random(256, 24, seed=3), random(1, 40, 256, seed=4)
    model = products_of(weight)
    quantiser = MatMulNBitsQuantizer(
        ir.to_proto(model), block_size=128, is_symmetric=True, quant_format=QuantFormat.QDQ
    )
    quantiser.process()
    theirs = ir.from_proto(quantiser.model.model)
    Int4WeightPass()(model)
    for ours, other in zip(model.graph, theirs.graph, strict=True):
        assert (ours.op_type, ours.domain) == (other.op_type, other.domain)
        constants = [[v.const_value for v in node.inputs if v.const_value is not None] for node in (ours, other)]
        assert [(t.dtype, t.shape) for t in constants[0]] == [
            (t.dtype, t.shape) for t in constants[1][: len(constants[0])]
        ]
        for name in ours.attributes:
            assert ours.attributes[name].as_int() == other.attributes[name].as_int()
    exact = x.astype(np.float64) @ weight
    ours, other = (
        float(np.linalg.norm(answers_of(each, x)[0] - exact) / np.linalg.norm(exact)) for each in (model, theirs)
    )
    assert 0.05 < other < 0.15
    assert ours <= 8 / 7 * 1.02 * other  # a step of theirs is 7/8 of ours
