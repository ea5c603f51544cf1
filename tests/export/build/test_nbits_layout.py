"""ONNX Runtime's int4 layout against the portable one."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from rediprune.calibration.bundle_graphs import load_graph
from rediprune.calibration.quantize.block_weights import Int4WeightPass, Int8WeightPass
from rediprune.calibration.quantize.linear_layer_pass import LinearLayerPass
from rediprune.export.build.nbits_layout import pack, to_nbits
from rediprune.runtime.bundle import Bundle


def test_nibbles_lie_as_documented() -> None:
    integers = np.array([[-8, 0], [-7, 1], [7, 2], [6, 3]], np.int8)
    assert pack(integers, 2).tolist() == [[[0x10], [0xEF]], [[0x98], [0xBA]]]


def test_bytes_lie_as_documented() -> None:
    integers = np.array([[-128, 0], [-127, 1], [127, 2], [126, 3]], np.int8)
    assert pack(integers, 2, bits=8).tolist() == [[[0, 1], [255, 254]], [[128, 129], [130, 131]]]


def feed_of(bundle: Bundle) -> dict[str, np.ndarray]:
    random, sizes = np.random.default_rng(0), {"batch": 1, "tokens": 5, "cache": 9}
    feed = {}
    for port in bundle.manifest.stages["language"].inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in port.shape]
        feed[port.name] = (random.standard_normal(shape) * (port.dtype != "int64")).astype(port.dtype)
    return feed


@pytest.mark.parametrize("weights", [Int4WeightPass, Int8WeightPass])
@pytest.mark.parametrize("name", ["llava", "llava_next_video"])
def test_both_layouts_of_a_decoder_agree_to_the_bit(
    name: str, weights: type[LinearLayerPass], bundle_of, tmp_path: Path
) -> None:
    bundle = Bundle.open(bundle_of(name))
    model = load_graph(bundle, "language")
    weights()(model)
    ir.save(model, tmp_path / "qdq.onnx", external_data="qdq.data")
    model = ir.load(tmp_path / "qdq.onnx")
    to_nbits(model)
    ir.save(model, tmp_path / "nbits.onnx", external_data="nbits.data")
    kinds = [node.op_type for node in model.graph]
    assert "DequantizeLinear" not in kinds and "MatMul" not in kinds

    feed = feed_of(bundle)
    results = []
    for file in ("qdq.onnx", "nbits.onnx"):
        session = ort.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feed))
    for portable, nbits in zip(*results, strict=True):
        assert np.array_equal(portable, nbits)
        assert np.isfinite(nbits).all()


def test_other_products_are_left_alone(bundle_of) -> None:
    bundle = Bundle.open(bundle_of("llava"))
    model = load_graph(bundle, "language")
    before = [node.op_type for node in model.graph]
    to_nbits(model)
    assert [node.op_type for node in model.graph] == before
