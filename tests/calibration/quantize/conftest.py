"""Graphs of a few products, and what ONNX Runtime makes of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from rediprune.calibration.bundle_graphs import has_int8_blocks
from rediprune.runtime.backends.ort import session_options


@pytest.fixture(scope="session")
def products_of() -> Callable[..., ir.Model]:
    """Makes a graph: x [b, s, in] → one product y0, y1, … with each of the weights [in, out], all of one dtype."""

    def make(*weights: np.ndarray) -> ir.Model:
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
        graph = ir.Graph([x], outputs, nodes=nodes, initializers=values, opset_imports={"": 24})
        return ir.Model(graph, ir_version=11)

    return make


@pytest.fixture(scope="session")
def answers_of() -> Callable[[ir.Model | Path, np.ndarray], list[np.ndarray]]:
    """Runs a graph with input x on ONNX Runtime."""

    def run(model: ir.Model | Path, x: np.ndarray) -> list[np.ndarray]:
        source = model if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
        options = session_options(0, has_int8_blocks(ir.load(model) if isinstance(model, Path) else model))
        # ONNX Runtime else rounds the activations of int4 products to int8.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return [np.asarray(y) for y in session.run(None, {"x": x})]

    return run


@pytest.fixture(scope="session")
def constant_of() -> Callable[[ir.Model, str], np.ndarray]:
    """Reads an initialiser of a graph."""

    def read(model: ir.Model, name: str) -> np.ndarray:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    return read
