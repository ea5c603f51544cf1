"""A bundle of a few kilobytes with everything in it that the checks look at, made without a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from rediprune.runtime.bundle import (
    Bundle,
    DecoderSpec,
    Manifest,
    ModalitySpec,
    Source,
    StageSpec,
    TensorSpec,
    file_sha256,
)


def _write_graph(path: Path, location: str) -> None:
    """A graph that adds a weight of four floats to its input, the weight in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "graph", ports[:1], ports[1:], [weight])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())


@pytest.fixture
def write_graph() -> Callable[[Path, str], None]:
    """Writes a graph of one addition whose weight lies in a file at a place as given."""
    return _write_graph


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """Makes a bundle in a folder: one stage, its weights in a file, two processor files."""

    def make(folder: Path, location: str = "vision.onnx.data", tool: str = "0.1.0") -> Bundle:
        for place in ("onnx", "processor"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        np.arange(4, dtype=np.float32).tofile(folder / "onnx/vision.onnx.data")
        _write_graph(folder / "onnx/vision.onnx", location)
        for name in ("tokenizer.json", "config.json"):
            (folder / "processor" / name).write_text("{}")
        names = ("onnx/vision.onnx", "onnx/vision.onnx.data", "processor/tokenizer.json", "processor/config.json")
        hashes = {name: file_sha256(folder / name) for name in names}
        port = TensorSpec(name="x", dtype="float32", shape=[4])
        stage = StageSpec(
            file=names[0],
            files={name: hashes[name] for name in names[:2]},
            precision="fp32",
            inputs=[port],
            outputs=[port.model_copy(update={"name": "y"})],
        )
        manifest = Manifest(
            tool_version=tool,
            source=Source(name="models/small", config_sha256="0" * 64, weights={}),
            family="llava",
            family_name="LLaVA-1.5",
            tower="clip_vision_model",
            language_model="llama",
            precision="fp32",
            image_size=8,
            patch_size=2,
            channels=4,
            decoder=DecoderSpec(layers=1, kv_heads=1, head_width=4, width=4, vocabulary=8, max_positions=16),
            modalities={"image": ModalitySpec(stage="vision", output="y", rows=2, columns=2, placeholder=3)},
            stages={"vision": stage},
            files={name: hashes[name] for name in names[2:]},
        )
        bundle = Bundle(folder, manifest)
        bundle.write_manifest()
        return bundle

    return make
