"""Places of external data are found wherever a graph can have a tensor, and are the ones that onnx itself sees."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rediprune.runtime.bundle.external_data import external_locations


def outside(location: str) -> TensorProto:
    """A tensor whose data lie in a file."""
    tensor = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_every_tensor_of_a_graph_is_looked_at(tmp_path: Path) -> None:
    inner = helper.make_graph([], "inner", [], [], [outside("if.data")])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=outside("attribute.data")),
        helper.make_node("Any", [], ["b"], several=[outside("first.data"), outside("second.data")]),
        helper.make_node("If", ["a"], [], then_branch=inner),
        helper.make_node("Scan", ["a"], [], bodies=[inner, helper.make_graph([], "g", [], [], [outside("deep.data")])]),
    ]
    sparse = onnx.SparseTensorProto(values=outside("values.data"), indices=outside("indices.data"), dims=[4])
    nodes.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    graph = helper.make_graph(nodes, "graph", [], [], [outside("weights/a.data"), outside("weights/a.data")])
    graph.sparse_initializer.add().values.CopyFrom(outside("sparse.data"))
    body = [helper.make_node("Constant", [], ["a"], value=outside("function.data"))]
    model = helper.make_model(graph, functions=[helper.make_function("own", "F", [], ["a"], body, [])])
    model.training_info.add().algorithm.initializer.append(outside("training.data"))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    names = ["attribute", "deep", "first", "function", "if", "indices", "second", "sparse", "training", "values"]
    assert external_locations(path) == [f"{name}.data" for name in (*names, "weights/a")]


def test_weights_within_the_graph_are_no_place(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.arange(1000.0), "w")
    onnx.save(helper.make_model(helper.make_graph([], "graph", [], [], [weight])), tmp_path / "graph.onnx")
    assert external_locations(tmp_path / "graph.onnx") == []


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\xff\xff\xff\xff no graph")
    with pytest.raises(ValueError, match="no ONNX graph"):
        external_locations(tmp_path / "graph.onnx")
