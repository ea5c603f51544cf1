"""Every scheme makes a graph that ONNX Runtime or onnx reads, near the one it was made of, as its entry says."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from rediprune.calibration.quantize.activation_ranges import Activation
from rediprune.calibration.quantize.linear_layer_pass import LinearLayerPass
from rediprune.calibration.quantize.schemes import SCHEMES, PassInputs

ERRORS = {
    "int8": 0.02,
    "int8-dynamic": 0.015,
    "int8-weights": 0.008,
    "fp8": 0.05,
    "int4": 0.15,
    "fp16": 1e-3,
    "bf16": 8e-3,
}


def given(x: np.ndarray, needed: str, **chosen: object) -> PassInputs:
    rows = x.reshape(-1, x.shape[-1])
    seen = {"x": Activation(np.abs(rows).max(axis=0), rows)} if needed else {}
    return PassInputs(seen, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_scheme_is_near_the_float_graph(name: str, products_of, answers_of) -> None:
    random = np.random.default_rng(0)
    weight, x = (
        random.standard_normal((64, 8)).astype(np.float32),
        random.standard_normal((1, 30, 64)).astype(np.float32),
    )
    model = products_of(weight)
    scheme = SCHEMES[name]
    scheme.make_pass(given(x, scheme.activations))(model)
    fed = x.astype(np.float16) if model.graph.inputs[0].dtype == ir.DataType.FLOAT16 else x
    if name in ("bf16", "fp8"):  # not, or slowly, on ONNX Runtime's CPU
        y = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": fed})[0]
    else:
        (y,) = answers_of(model, fed)
    exact = x.astype(np.float64) @ weight
    error = np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact)
    assert ERRORS[name] / 20 < error < ERRORS[name]


@pytest.mark.parametrize("name", list(SCHEMES))
def test_single_layers_can_be_left_out_where_the_scheme_says_so(name: str, products_of) -> None:
    random = np.random.default_rng(0)
    model = products_of(*random.standard_normal((2, 32, 8)).astype(np.float32))
    scheme = SCHEMES[name]
    made = scheme.make_pass(given(np.ones((1, 2, 32), np.float32), scheme.activations, layer_names=["fc1"]))
    assert isinstance(made, LinearLayerPass) == scheme.per_layer
    made(model)
    assert ("fc0.weight.T" in model.graph.initializers) == scheme.per_layer


def test_what_does_not_use_activations_is_made_without() -> None:
    for scheme in SCHEMES.values():
        if scheme.activations != "needed":
            scheme.make_pass(PassInputs())
