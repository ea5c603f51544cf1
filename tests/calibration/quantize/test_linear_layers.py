"""Linear layers of real graphs, in both layouts that export writes."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rediprune.calibration.quantize.linear_layers import linear_layers
from rediprune.graphs.initializers import add_constant


def graph(stored: np.ndarray, *views: str) -> ir.Model:
    """x [n, in] · views(stored)."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", None]))
    value = ir.Value(name="fc.weight", const_value=ir.tensor(stored, name="fc.weight"))
    nodes, at = [], value
    for view in views:
        attributes = {"to": ir.DataType.FLOAT} if view == "Cast" else {"perm": [1, 0]}
        nodes.append(ir.node(view, [at], attributes))
        at = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [x, at]))
    nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], x]))  # a product of activations is no layer
    return ir.Model(
        ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=[value], opset_imports={"": 24}), ir_version=11
    )


@pytest.mark.parametrize("views", [(), ("Cast",), ("Transpose",), ("Cast", "Transpose"), ("Transpose", "Cast")])
def test_weights_are_read_through_conversions(views: tuple[str, ...]) -> None:
    stored = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float16 if "Cast" in views else np.float32)
    (layer,) = linear_layers(graph(stored, *views))
    expected = stored.T if "Transpose" in views else stored
    assert layer.name == "fc"
    assert layer.shape == expected.shape
    assert layer.weight().dtype == np.float32
    assert np.array_equal(layer.weight(), expected.astype(np.float32))
    assert layer.input.name == "x"


def test_constants_are_initialisers_of_the_saved_graph(tmp_path: Path) -> None:
    model = graph(np.ones((2, 2), np.float32))
    add_constant(model, ir.tensor(np.arange(3.0), name="scale"))
    ir.save(model, tmp_path / "m.onnx")
    assert ir.load(tmp_path / "m.onnx").graph.initializers["scale"].const_value.numpy().tolist() == [0, 1, 2]
