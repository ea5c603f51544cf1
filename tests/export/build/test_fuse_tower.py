"""The tower in ONNX Runtime's own operators gives the portable features."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rediprune.calibration.bundle_graphs import load_graph, open_graph
from rediprune.calibration.quantize.int8_dynamic import DynamicInt8Pass
from rediprune.export.build.cpu_engines import build_cpu
from rediprune.export.build.fuse_tower import fuse_tower
from rediprune.runtime.backends.session import open_stage
from rediprune.runtime.bundle import Bundle


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("llava", ["vision"]),
        ("llava_siglip", ["vision"]),
        ("llava_next_video", ["vision"]),
        ("video_llava", ["vision", "vision_video"]),
    ],
)
def test_fused_tower_gives_the_portable_features(
    name: str, stages: list[str], bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_of(name), folder)
    build_cpu(folder, "ort")
    fused, portable = Bundle.open(folder), Bundle.open(bundle_of(name))
    for stage in stages:
        operators = Counter(node.op_type for node in ir.load(fused.graph("ort", stage)).graph)
        before = Counter(node.op_type for node in ir.load(portable.graph("ort", stage)).graph)
        assert operators["MultiHeadAttention"] == before["Attention"] > 0
        assert not operators["Attention"]
        assert operators["QuickGelu"] == before["Sigmoid"]
        size = fused.manifest.image_size
        pixels = np.random.default_rng(0).standard_normal((3, 3, size, size), np.float32)
        got, want = (open_stage("ort", bundle, stage, 0).run({"pixel_values": pixels}) for bundle in (fused, portable))
        for output, features in want.items():
            assert np.abs(got[output] - features).max() <= 2e-5 * np.abs(features).max()


def test_a_quantised_tower_is_fused_too(bundle_of: Callable[[str], Path]) -> None:
    """Its roundings may fall otherwise where a sum ends in another bit, and so it is held to the error it had."""
    bundle = Bundle.open(bundle_of("llava"))
    portable, quantised, fused = (load_graph(bundle, "vision") for _ in range(3))
    for model in (quantised, fused):
        DynamicInt8Pass()(model)
    assert fuse_tower(fused) == sum(node.op_type == "Attention" for node in portable.graph) > 0
    pixels = np.random.default_rng(0).standard_normal((2, 3, bundle.manifest.image_size, bundle.manifest.image_size))
    exact, plain, got = (
        open_graph(bundle, "vision", model).run(None, {"pixel_values": pixels.astype(np.float32)})[0]
        for model in (portable, quantised, fused)
    )
    error, own = (np.linalg.norm(features - exact) / np.linalg.norm(exact) for features in (plain, got))
    assert 0 < error < 0.1
    assert own == pytest.approx(error, rel=0.1)


@pytest.mark.family
def test_a_tower_in_half_precision_stays_as_it_is(bundle_of: Callable[[str], Path]) -> None:
    model = ir.load(bundle_of("llava_fp16") / "onnx/vision.onnx")
    assert fuse_tower(model) == 0
    assert "com.microsoft" not in model.opset_imports
