"""Passes rewrite the layers that are named, all of them, and leave the others."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from rediprune.calibration.quantize.activation_ranges import Activation
from rediprune.calibration.quantize.block_weights import Int4WeightPass, Int8WeightPass
from rediprune.calibration.quantize.int8_dynamic import DynamicInt8Pass
from rediprune.calibration.quantize.linear_layer_pass import LinearLayerPass, UnsuitableGraphError
from rediprune.calibration.quantize.linear_layers import linear_layers
from rediprune.calibration.quantize.qdq import FP8, INT8, QdqPass
from rediprune.runtime.errors import RedipruneError

SEEN = {"x": Activation(np.ones(32, np.float32), np.ones((2, 32), np.float32))}
PASSES: dict[str, Callable[..., LinearLayerPass]] = {
    "int8": lambda **chosen: QdqPass(INT8, SEEN, **chosen),
    "smoothed int8": lambda **chosen: QdqPass(INT8, SEEN, smoothing=0.75, **chosen),
    "fp8": lambda **chosen: QdqPass(FP8, SEEN, **chosen),
    "int8-dynamic": DynamicInt8Pass,
    "int4": Int4WeightPass,
    "int8-weights": Int8WeightPass,
    "int4 with samples": lambda **chosen: Int4WeightPass({"x": np.eye(32, dtype=np.float32)}, **chosen),
}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", list(PASSES))
def test_only_the_named_layers_are_rewritten(name: str, products_of, answers_of) -> None:
    weights, x = [random(32, 4, seed=at) for at in range(3)], random(1, 5, 32, seed=9) / 4
    model = products_of(*weights)
    result = PASSES[name](layer_names=["fc0", "fc2"])(model)
    assert result.modified and result.model is model
    assert [layer.name for layer in linear_layers(model)] == ["fc1"]
    assert "fc0.weight.T" not in model.graph.initializers  # nothing is stored twice
    for at, y in enumerate(answers_of(model, x)):
        exact = x @ weights[at]
        error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
        assert error < 1e-6 if at == 1 else 1e-4 < error < 0.2


@pytest.mark.parametrize("name", list(PASSES))
def test_no_name_is_every_layer_and_an_empty_choice_none(name: str, products_of) -> None:
    model = products_of(random(32, 4), random(32, 4, seed=1))
    assert not PASSES[name](layer_names=[])(model).modified
    assert len(linear_layers(model)) == 2
    assert PASSES[name]()(model).modified
    assert linear_layers(model) == []
    assert not PASSES[name]()(model).modified


@pytest.mark.parametrize("name", list(PASSES))
def test_a_layer_that_is_not_there_is_refused(name: str, products_of) -> None:
    model = products_of(random(32, 4))
    with pytest.raises(UnsuitableGraphError, match="no linear layer 'fc7'"):
        PASSES[name](layer_names=["fc0", "fc7"])(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]


@pytest.mark.parametrize("name", list(PASSES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(name: str, bad: float, products_of) -> None:
    weights = [random(32, 4), random(32, 4)]
    weights[1][7, 2] = bad
    model = products_of(*weights)
    with pytest.raises(RedipruneError, match=r"'fc1' has infinite or NaN"):
        PASSES[name]()(model)


def test_a_pass_that_leaves_a_layer_out_is_caught(products_of) -> None:
    class Forgetful(LinearLayerPass):
        def rewrite(self, model: ir.Model, layers: object) -> None:
            pass

    with pytest.raises(ir.passes.PostconditionError, match="Forgetful left layer 'fc0' as it was"):
        Forgetful()(products_of(random(32, 4)))
