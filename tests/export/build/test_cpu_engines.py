"""The decoder in ONNX Runtime's own operators answers as the portable one, and is refused when it is not the bundle's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rediprune.export.build.cpu_engines import build_cpu
from rediprune.runtime.backends.session import open_language
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import RedipruneError

from ...support.bundles import without_positions


def built(bundle: Path, folder: Path) -> Path:
    shutil.copytree(bundle, folder)
    build_cpu(folder, "ort")
    return folder


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("llava", 2e-5),
        ("llava_fp16", 2e-2),
        ("llava_next", 2e-5),
        ("internvl_qwen3", 2e-5),
        pytest.param("qwen2_5_vl", 2e-5, marks=pytest.mark.slow),
        ("qwen3_vl", 2e-5),
    ],
)
def test_fused_attention_gives_the_portable_logits(
    name: str, tolerance: float, bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    fused = Bundle.open(built(bundle_of(name), tmp_path / "bundle"))
    graph = ir.load(fused.graph("ort", "language"))
    operators = [node.op_type for node in graph.graph]
    assert operators.count("GroupQueryAttention") == fused.manifest.decoder.layers
    assert "Attention" not in operators and "TensorScatter" not in operators
    assert ("RotaryEmbedding" in operators) == (not name.startswith("qwen"))  # which have three positions a token
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal((1, n, fused.manifest.decoder.width), np.float32) for n in (9, 1, 1, 4, 1)]
    decoders = [open_language("ort", Bundle.open(folder), 0).start(20) for folder in (bundle_of(name), fused.folder)]
    place = 0
    for embeds in steps:  # prefill, decoding, and several tokens at once with a past
        positions = place + np.cumsum(rng.integers(1, 5, embeds.shape[1]))[None]  # with gaps
        portable, own = (decoder.step(embeds, positions) for decoder in decoders)
        assert np.abs(own - portable).max() <= tolerance * np.abs(portable).max()
        place = positions.max()


@pytest.mark.parametrize("name", ["llava", "llava_fp16"])
def test_a_decoder_of_an_earlier_version_has_its_rotary_embedding_inside(
    name: str, bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    old = without_positions(bundle_of(name), tmp_path / "old")
    fused = Bundle.open(built(old, tmp_path / "bundle"))
    operators = [node.op_type for node in ir.load(fused.graph("ort", "language")).graph]
    assert operators.count("GroupQueryAttention") == fused.manifest.decoder.layers
    assert "RotaryEmbedding" not in operators
    tolerance = 2e-5 if name == "llava" else 2e-2
    rng = np.random.default_rng(0)
    decoders = [open_language("ort", Bundle.open(folder), 0).start(20) for folder in (old, fused.folder)]
    for tokens in (9, 1, 4):
        embeds = rng.standard_normal((1, tokens, fused.manifest.decoder.width), np.float32)
        portable, own = (decoder.step(embeds) for decoder in decoders)
        assert np.abs(own - portable).max() <= tolerance * np.abs(portable).max()


@pytest.mark.trace
@pytest.mark.parametrize("earlier", [False, True])
def test_scaled_rotary_embeddings_stay_scaled(
    earlier: bool, checkpoint_of: Callable[[str], Path], export_of: Callable[..., Path], tmp_path: Path
) -> None:
    """YaRN multiplies cosines and sines by a factor, which the tables must hold too."""
    checkpoint = Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "yarn"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 512,
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    portable = export_of(checkpoint, "yarn")
    if earlier:
        portable = without_positions(portable, tmp_path / "old")
    fused = built(portable, tmp_path / "bundle")
    embeds = np.random.default_rng(0).standard_normal((1, 9, 64), np.float32)
    ours, theirs = (open_language("ort", Bundle.open(f), 0).start(20).step(embeds) for f in (fused, portable))
    assert (fused / "onnx/language.ort.onnx").is_file()
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


@pytest.mark.family
def test_attention_with_heads_of_another_width_stays_portable(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = Bundle.open(built(bundle_of("llava_siglip"), tmp_path / "bundle"))
    assert bundle.manifest.decoder.head_width % 16
    operators = [node.op_type for node in ir.load(bundle.graph("ort", "language")).graph]
    assert operators.count("Attention") == bundle.manifest.decoder.layers
    assert "GroupQueryAttention" not in operators
    assert "ort" in bundle.manifest.engines


def test_a_replaced_graph_is_refused_and_built_again(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = built(bundle_of("llava"), tmp_path / "bundle")
    path = folder / "onnx/language.ort.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RedipruneError, match=r"is truncated or was replaced; build it again with: .*--backend ort"):
        open_language("ort", Bundle.open(folder), 0)
    path.unlink()
    with pytest.raises(RedipruneError, match="is missing"):
        open_language("ort", Bundle.open(folder), 0)
    build_cpu(folder, "ort")
    open_language("ort", Bundle.open(folder), 0)
    assert path.is_file()
