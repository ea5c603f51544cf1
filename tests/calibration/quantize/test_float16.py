"""Half precision against the float32 graph it is made of, and against TensorRT-RTX's parser and builder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from rediprune.calibration.bundle_graphs import load_graph
from rediprune.calibration.quantize.float16 import HalfPrecisionPass
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import RedipruneError

pytestmark = pytest.mark.calibration

SIZES = {"batch": 1, "tokens": 5, "cache": 16, "frames": 2, "kept": 4}


def feed(bundle: Bundle, stage: str) -> dict[str, np.ndarray]:
    random, inputs = np.random.default_rng(0), {}
    for port in bundle.manifest.stages[stage].inputs:
        shape = [SIZES[d] if isinstance(d, str) else d for d in port.shape]
        inputs[port.name] = (random.standard_normal(shape) * (port.dtype != "int64")).astype(port.dtype)
    return inputs


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    types = {port.name: {"tensor(float16)": np.float16}.get(port.type) for port in session.get_inputs()}
    outputs = session.run(None, {name: x.astype(types[name] or x.dtype) for name, x in inputs.items()})
    return [np.asarray(y).astype(np.float64) for y in outputs]


@pytest.mark.parametrize("stage", ["vision", "project", "embed", "language"])
@pytest.mark.parametrize("name", ["llava", "llava_siglip"])
def test_fp16_is_the_same_but_for_rounding(name: str, stage: str, bundle_of, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_of(name))
    model = load_graph(bundle, stage)
    HalfPrecisionPass(ir.DataType.FLOAT16)(model)
    ir.save(model, tmp_path / "half.onnx", external_data="half.data")
    expected = run(bundle.path(bundle.manifest.stages[stage].file), feed(bundle, stage))
    for y, half in zip(expected, run(tmp_path / "half.onnx", feed(bundle, stage)), strict=True):
        assert np.linalg.norm(half - y) <= 4e-3 * np.linalg.norm(y)


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_islands_and_products(half: ir.DataType, bundle_of) -> None:
    bundle = Bundle.open(bundle_of("llava_next_video"))
    model = load_graph(bundle, "language")
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    HalfPrecisionPass(half)(model)
    for node in model.graph:
        if node.op_type in ("MatMul", "Attention"):
            assert {value.dtype for value in node.inputs[:2]} == {half}
        if node.op_type in ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "Cos", "Sin"):
            assert node.outputs[0].dtype == ir.DataType.FLOAT
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == names
    boundary = half if half == ir.DataType.FLOAT16 else ir.DataType.FLOAT
    values = [
        value
        for value in (*model.graph.inputs, *model.graph.outputs)
        if value.name not in ("position_ids", "write_index")
    ]
    assert {value.dtype for value in values} == {boundary}


def test_a_large_residual_survives_its_norm(tmp_path: Path) -> None:
    """300² is beyond fp16: the squares of a norm must not be in half."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 8]))
    typed = {"type": ir.TensorType(ir.DataType.FLOAT), "shape": ir.Shape(["n", 8])}
    two = ir.Value(name="two", type=typed["type"], const_value=ir.tensor(np.float32(2), name="two"))
    axis = ir.Value(name="axis", type=ir.TensorType(ir.DataType.INT64), const_value=ir.tensor([-1], name="axis"))
    scale = ir.tensor(np.ones(8, np.float32), name="norm.weight")
    weight = ir.Value(name="norm.weight", type=typed["type"], shape=scale.shape, const_value=scale)
    nodes = [ir.node("Pow", [x, two])]
    nodes.append(ir.node("ReduceMean", [nodes[-1].outputs[0], axis]))
    nodes.append(ir.node("Sqrt", nodes[-1].outputs))
    nodes.append(ir.node("Div", [x, nodes[-1].outputs[0]]))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], weight]))
    for node in nodes:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    nodes[-1].outputs[0].name, nodes[-1].outputs[0].shape = "y", typed["shape"]
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=[two, axis, weight], opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    HalfPrecisionPass(ir.DataType.FLOAT16)(model)
    ir.save(model, tmp_path / "norm.onnx")
    (y,) = run(tmp_path / "norm.onnx", {"x": np.full((2, 8), 300, np.float32)})
    assert np.array_equal(y, np.ones((2, 8)))


def test_weights_beyond_fp16_are_named(tmp_path: Path, bundle_of) -> None:
    model = load_graph(Bundle.open(bundle_of("llava")), "project")
    name, value = next((n, v) for n, v in model.graph.initializers.items() if len(v.shape or ()) == 2)
    value.const_value = ir.tensor(np.full(value.const_value.shape.numpy(), 1e6, np.float32), name=name)
    HalfPrecisionPass(ir.DataType.FLOAT16)(model)
    with pytest.raises(RedipruneError, match=f"'{name}' has entries beyond the range of float16"):
        ir.save(model, tmp_path / "half.onnx", external_data="half.data")


@pytest.mark.parametrize("dtype", [ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
@pytest.mark.parametrize("stage", ["project", "embed"])
def test_stored_weights_beyond_fp16_are_named(dtype: ir.DataType, stage: str, bundle_of) -> None:
    """A weight that lies in the checkpoint in another type is converted by the engine, without a word."""
    for last, good in ((65280.0, True), (-70000.0, False)):
        model = load_graph(Bundle.open(bundle_of("llava")), stage)
        name, value = next((n, v) for n, v in model.graph.initializers.items() if len(v.shape or ()) == 2)
        array = np.array(value.const_value.numpy(), dtype.numpy())
        array[-1, -1] = last
        raw = ir.Value(name=f"{name}.stored", type=ir.TensorType(dtype), shape=value.shape)
        raw.const_value = ir.tensor(array, dtype=dtype, name=raw.name)
        cast = ir.node("Cast", [raw], {"to": ir.DataType.FLOAT})
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = f"{name}.cast", value.type, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        model.graph.register_initializer(raw)
        model.graph.insert_before(model.graph[0], cast)
        if good:
            HalfPrecisionPass(ir.DataType.FLOAT16)(model)
            continue
        with pytest.raises(RedipruneError, match=f"'{raw.name}' has entries beyond the range of float16"):
            HalfPrecisionPass(ir.DataType.FLOAT16)(model)


@pytest.mark.parametrize("stage", ["vision", "language"])
@pytest.mark.parametrize(("half", "named"), [(ir.DataType.FLOAT16, "fp16"), (ir.DataType.BFLOAT16, "bf16")])
def test_tensorrt_rtx_builds_it(stage: str, half: ir.DataType, named: str, bundle_of, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'rediprune[tensorrt-rtx]'")
    bundle = Bundle.open(bundle_of("llava"))
    model = load_graph(bundle, stage)
    HalfPrecisionPass(half)(model)
    ir.save(model, tmp_path / "half.onnx", external_data="half.data")
    sizes = {"batch": [1, 1, 1], "tokens": [1, 8, 64], "cache": [64, 64, 64], "frames": [1, 2, 4]}
    profile = {}
    for port in bundle.manifest.stages[stage].inputs:
        profile[port.name] = [[sizes[d][i] if isinstance(d, str) else d for d in port.shape] for i in range(3)]
    job = {
        "module": "tensorrt_rtx",
        "stage": stage,
        "graph": str(tmp_path / "half.onnx"),
        "engine": str(tmp_path / "half.engine"),
        "profile": profile,
        "targets": ["sm_89"],
    }
    worker = [sys.executable, "-m", "rediprune.export.build.tensorrt_worker"]
    done = subprocess.run(worker, input=json.dumps(job), capture_output=True, text=True, timeout=500)
    last = json.loads(done.stdout.splitlines()[-1])
    assert "result" in last, last
    assert last["result"]["precision"] == named
