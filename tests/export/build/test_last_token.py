"""The last token is taken as early as it can be, and every output stays what it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from rediprune.calibration.bundle_graphs import load_graph, open_graph
from rediprune.export.build.last_token import only_last_token
from rediprune.runtime.bundle import Bundle

LAYER = """
    <ir_version: 10, opset_import: ["" : 20]>
    layer (float[B, S, 4] x) => (float[B, 1, 4] y$also)
    {
        start = Constant <value_ints: ints = [-1]> ()
        stop = Constant <value_ints: ints = [9223372036854775807]> ()
        axis = Constant <value_ints: ints = [1]> ()
        two = Constant <value = float {2.0}> ()
        $lines
        last = Slice (h, start, stop, axis)
        y = Mul (last, two)
    }"""


def layer(lines: str, also: str = "") -> ir.Model:
    model = ir.from_onnx_text(LAYER.replace("$lines", lines).replace("$also", also))
    for node in model.graph:
        for value in node.outputs:
            if value.name in ("a", "b", "h", "s"):
                value.shape = ir.Shape(["B", "S", 4])
    return model


def answers(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


@pytest.mark.parametrize("name", ["llava", "internvl_qwen3", "qwen3_vl"])
def test_the_last_layer_of_a_decoder_sees_one_token(name: str, bundle_of: Callable[[str], Path]) -> None:
    bundle = Bundle.open(bundle_of(name))
    model, before = load_graph(bundle, "language"), load_graph(bundle, "language")
    outputs = len(model.graph.outputs)
    assert only_last_token(model) > 0
    products = [node.outputs[0] for node in model.graph if node.op_type == "MatMul"]
    model.graph.outputs.extend(value for value in products if value.name != "logits")
    rng, decoder = np.random.default_rng(0), bundle.manifest.decoder
    feeds: dict[str, np.ndarray] = {"inputs_embeds": rng.standard_normal((1, 7, decoder.width), np.float32)}
    feeds["write_index"] = np.array([2], np.int64)
    for port in bundle.manifest.stages["language"].inputs:
        if port.name == "position_ids":
            feeds[port.name] = np.broadcast_to(np.arange(2, 9), (3,) * (len(port.shape) == 3) + (1, 7)).copy()
        elif port.name.startswith("past."):
            feeds[port.name] = rng.standard_normal((1, decoder.kv_heads, 12, decoder.head_width), np.float32)
        elif port.name == "deepstack":
            feeds[port.name] = rng.standard_normal((port.shape[0], 1, 7, decoder.width)).astype(np.float32)
    got, want = (open_graph(bundle, "language", graph).run(None, feeds) for graph in (model, before))
    for value, expected in zip(got[:outputs], want, strict=True):
        assert np.abs(value - expected).max() <= 2e-6 * np.abs(expected).max()
    # Of the last layer the output projection, gate, up and down, and the head as before.
    assert sum(value.shape[1] == 1 for value in (got[0], *got[outputs:])) == 5


def test_only_what_nothing_else_reads_is_shortened() -> None:
    """`a` is an output and stays whole; what follows it need not."""
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    lines = "a = Add (x, two)\n b = Mul (a, a)\n h = Sqrt (b)"
    model, whole = layer(lines, ", float[B, S, 4] a"), layer(lines, ", float[B, S, 4] a")
    assert only_last_token(model) == 2
    for got, want in zip(answers(model, x), answers(whole, x), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("name", "value"), [("start", 0), ("start", -2), ("axis", 2)])
def test_another_slice_than_the_last_token_stays(name: str, value: int) -> None:
    before = {"start": "[-1]", "axis": "[1]"}[name]
    text = LAYER.replace(
        f"{name} = Constant <value_ints: ints = {before}>", f"{name} = Constant <value_ints: ints = [{value}]>"
    )
    model = ir.from_onnx_text(text.replace("$lines", "h = Add (x, two)").replace("$also", ""))
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(["B", "S", 4]) if node.outputs[0].name == "h" else node.outputs[0].shape
    assert only_last_token(model) == 0


@pytest.mark.parametrize(
    "lines",
    [
        "s = Softmax <axis = 1> (x)\n h = Transpose <perm = [0, 1, 2]> (s)",  # looks at other tokens
        "m = ReduceMean <keepdims = 1> (x, axis)\n h = Mul (x, m)",
        "a = Transpose <perm = [0, 2, 1]> (x)\n s = MatMul (x, a)\n h = MatMul (s, x)",
        "one = Constant <value_int: int = 1> ()\n s = Softmax <axis = 1> (x)\n h = CumSum (s, one)",
    ],
)
def test_operators_that_look_at_other_tokens_stop_it(lines: str) -> None:
    model = layer(lines)
    assert only_last_token(model) == 0
    assert [node.op_type for node in model.graph].count("Slice") == 1
