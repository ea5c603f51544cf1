"""Which values of a graph are constants."""

import numpy as np
import onnx_ir as ir
import pytest
from rediprune.graphs.initializers import is_constant


@pytest.mark.parametrize("constant", [True, False])
def test_of_values_behind_many_operators(constant: bool) -> None:
    first = ir.Value(name="x", const_value=ir.tensor(np.ones(2, np.float32)) if constant else None)
    step = ir.Value(name="step", const_value=ir.tensor(np.ones(2, np.float32)))
    value = first
    for _ in range(2000):  # twice as deep as Python's calls may be; each reads the one before twice
        value = ir.node("Add", [ir.node("Mul", [value, value]).outputs[0], step]).outputs[0]
    assert is_constant(value) is constant


def test_of_an_operator_without_inputs_and_of_one_that_is_left_out() -> None:
    made = ir.node("Constant", [], {"value_floats": [1.0, 2.0]}).outputs[0]
    assert is_constant(ir.node("Clip", [made, None]).outputs[0])
