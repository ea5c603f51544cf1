"""RMS norms in ONNX Runtime's own operator give what torch.onnx's operators give, and nothing else is taken for one."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.export.build.fuse_norms import fuse_norms


def norm_graph(channels: int, epsilon: float, weight_first: bool, kind: str = "float", **changed: str) -> ir.Model:
    lines = {
        "two": f"two = Constant <value = {kind} {{2.0}}> ()",
        "axes": "axes = Constant <value_ints: ints = [-1]> ()",
        "product": "y = Mul (weight, normed)" if weight_first else "y = Mul (normed, weight)",
    } | changed
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        norm ({kind}[B, S, {channels}] x, {kind}[{channels}] weight) => ({kind}[B, S, {channels}] y)
        {{
            {lines["two"]}
            {lines["axes"]}
            epsilon = Constant <value = {kind} {{{epsilon}}}> ()
            squares = Pow (x, two)
            mean = ReduceMean <keepdims = 1> (squares, axes)
            moved = Add (mean, epsilon)
            root = Sqrt (moved)
            inverse = Reciprocal (root)
            normed = Mul (x, inverse)
            {lines["product"]}
        }}""")
    weight = model.graph.inputs.pop()  # a constant of any values has no form in the text
    values = np.random.default_rng(1).standard_normal(channels)
    weight.const_value = ir.tensor(values.astype(np.float32 if kind == "float" else np.float64), name="weight")
    model.graph.register_initializer(weight)
    return model


def answer(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 300),
    tokens=st.integers(1, 5),
    exponent=st.integers(-6, 4),
    epsilon=st.sampled_from([1e-6, 1e-5]),
    weight_first=st.booleans(),
)
def test_a_fused_norm_gives_what_its_operators_give(
    channels: int, tokens: int, exponent: int, epsilon: float, weight_first: bool
) -> None:
    """Also of values whose squares are below epsilon, and of zeros."""
    x = np.random.default_rng(0).standard_normal((2, tokens, channels)).astype(np.float32) * np.float32(10.0**exponent)
    x[0, 0] = 0
    model = norm_graph(channels, epsilon, weight_first)
    want = answer(model, x)
    assert fuse_norms(model) == 1
    assert [node.op_type for node in model.graph] == ["SimplifiedLayerNormalization"]
    np.testing.assert_allclose(answer(model, x), want, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize(
    "changed",
    [
        {"two": "two = Constant <value = float {3.0}> ()"},
        {"axes": "axes = Constant <value_ints: ints = [1]> ()"},
        {"axes": "axes = Constant <value_ints: ints = [-2, -1]> ()"},
        {"product": "y = Sub (normed, weight)"},
    ],
)
def test_what_is_no_rms_norm_of_the_channels_stays(changed: dict[str, str]) -> None:
    model = norm_graph(8, 1e-6, True, **changed)
    before = [node.op_type for node in model.graph]
    assert fuse_norms(model) == 0
    assert [node.op_type for node in model.graph] == before


def test_a_weight_that_is_stored_in_half_precision_is_a_weight() -> None:
    """As in checkpoints in bfloat16, whose own bytes a bundle refers to."""
    model = norm_graph(8, 1e-6, True)
    weight = model.graph.initializers["weight"]
    assert weight.const_value is not None
    half = ir.tensor(weight.const_value.numpy().astype(np.float16), name="weight.half")
    stored = ir.Value(name=half.name, type=ir.TensorType(half.dtype), shape=half.shape, const_value=half)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    cast.outputs[0].type, cast.outputs[0].shape = weight.type, weight.shape
    weight.replace_all_uses_with(cast.outputs[0])
    model.graph.initializers.pop("weight")
    model.graph.register_initializer(stored)
    model.graph.insert_before(next(iter(model.graph)), cast)
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    want = answer(model, x)
    assert fuse_norms(model) == 1
    np.testing.assert_allclose(answer(model, x), want, rtol=2e-6)


def test_a_norm_in_another_precision_stays() -> None:
    assert fuse_norms(norm_graph(8, 1e-5, True, "double")) == 0
