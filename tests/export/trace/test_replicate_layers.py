"""Layers traced once: the graph made of three layers is the graph of the stage traced whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from rediprune.export import exporter as exporting
from rediprune.export.checkpoint import maker as checkpoints
from rediprune.export.checkpoint.made_decoders import DECODERS
from rediprune.export.checkpoint.reader import Checkpoint, Skeleton
from rediprune.export.exporter import export_bundle
from rediprune.export.trace.replicate_layers import SCOPES, SHALLOW, UnlikeLayersError, can_deepen, deepen
from rediprune.export.trace.tracer import trace
from rediprune.export.validate.validate import validate

pytestmark = pytest.mark.trace

DEEP = 5  # layers: two are made, each after the one before
TAPS = [1, 4]  # layers of a tower that are tapped, one of those that are traced and one that is made


def deep(checkpoint: Path, folder: Path, layers: int = DEEP) -> Skeleton:
    """The skeleton of a tiny checkpoint with more layers; tracing needs no weights."""
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = layers
    config["vision_config"]["depth" if "depth" in config["vision_config"] else "num_hidden_layers"] = layers
    if "deepstack_visual_indexes" in config["vision_config"]:
        config["vision_config"]["deepstack_visual_indexes"] = TAPS
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(str(folder)).skeleton("fp32")


@pytest.fixture(scope="module")
def skeleton(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return deep(checkpoint_of("llava_siglip"), tmp_path_factory.mktemp("layers") / "deep")


@pytest.fixture(scope="module")
def few(skeleton: Skeleton) -> ir.Model:
    """The language stage's graph of three layers."""
    return trace(skeleton.shallow.stage("language"), torch.float32)


def description(model: ir.Model) -> list[Any]:
    """Everything a graph says but the names of values and of dynamic dimensions inside it."""
    numbers: dict[ir.Value, object] = {}
    ports = {*model.graph.inputs, *model.graph.outputs}

    def typed(value: ir.Value) -> object:
        assert value.shape is not None
        return value.dtype, [dim if isinstance(dim, int) or value in ports else "?" for dim in value.shape]

    def told(node: ir.Node, value: ir.Value | None) -> object:
        if value is None or value in numbers:
            return None if value is None else numbers[value]
        if value.const_value is not None:
            return value.const_value.numpy().tolist(), typed(value)
        # All caches have the same lengths: the tracer reads them from one or another.
        return "any cache" if node.op_type == "Shape" and str(value.name).startswith("past.") else value.name

    nodes = []
    for node in model.graph:
        inputs = [told(node, value) for value in node.inputs]
        numbers |= {value: len(numbers) + at for at, value in enumerate(node.outputs)}
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        nodes.append((node.domain, node.op_type, inputs, attributes, [typed(value) for value in node.outputs]))
    inputs = [(value.name, typed(value)) for value in model.graph.inputs]
    outputs = [(value.name, numbers[value], typed(value)) for value in model.graph.outputs]
    weights = {name: typed(value) for name, value in model.graph.initializers.items() if value.const_value is None}
    return [*nodes, inputs, outputs, weights]


def assert_as_traced_whole(skeleton: Skeleton, name: str, few: ir.Model) -> None:
    whole = skeleton.stage(name)
    assert can_deepen(whole) and not can_deepen(skeleton.shallow.stage(name))
    before = description(few)
    made, traced = description(deepen(few, whole)), description(trace(whole, torch.float32))
    assert len(made) > len(before) and description(few) == before
    for ours, theirs in zip(made, traced, strict=True):
        assert ours == theirs


def test_a_decoder(skeleton: Skeleton, few: ir.Model) -> None:
    assert_as_traced_whole(skeleton, "language", few)


def test_a_tower_whose_last_layer_gives_the_output(skeleton: Skeleton) -> None:
    assert_as_traced_whole(skeleton, "vision", trace(skeleton.shallow.stage("vision"), torch.float32))


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("llava", "language"),
        ("llava", "vision"),
        ("llava_next_video", "vision"),
        ("video_llava", "vision_video"),
        ("internvl", "vision"),
        ("internvl_qwen3", "language"),
        ("smolvlm", "vision"),
        ("qwen2_vl", "vision"),
        ("qwen2_5_vl", "language"),
    ],
)
def test_every_other_stage(name: str, stage: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    skeleton = deep(checkpoint_of(name), tmp_path / "deep")
    assert_as_traced_whole(skeleton, stage, trace(skeleton.shallow.stage(stage), torch.float32))


def test_layers_that_something_is_added_behind_come_first(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    skeleton = deep(checkpoint_of("qwen3_vl"), tmp_path / "deep", DEEP + 2)  # of two tapped layers
    stage = skeleton.shallow.stage("language")
    assert stage.stack is not None and (stage.stack.unlike, stage.stack.layers) == (2, SHALLOW + 2)
    assert_as_traced_whole(skeleton, "language", trace(stage, torch.float32))


def test_layers_that_are_tapped(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    skeleton = deep(checkpoint_of("qwen3_vl"), tmp_path / "deep", DEEP + 2)
    stage = skeleton.shallow.stage("vision")
    assert stage.stack is not None and not stage.stack.taps and stage.outputs[1].shape[1] == 1
    assert_as_traced_whole(skeleton, "vision", trace(stage, torch.float32))
    first = replace(skeleton.stage("vision"), stack=replace(stage.stack, layers=DEEP, taps=(0,), tapped="rows"))
    with pytest.raises(UnlikeLayersError, match="layer 0 is tapped"):
        deepen(trace(stage, torch.float32), first)


def test_layers_that_differ_are_traced_whole(
    skeleton: Skeleton, few: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = skeleton.stage("language")

    def scaled(number: int) -> ir.Model:  # one layer's attention scaled otherwise
        changed = few.clone()
        node = [node for node in changed.graph if node.op_type == "Attention"][number]
        node.attributes["scale"] = ir.AttrFloat32("scale", 0.5)
        return changed

    deepen(scaled(0), stage)  # the first stands for itself
    for number in (1, 2):
        with pytest.raises(UnlikeLayersError, match="differ"):
            deepen(scaled(number), stage)

    layers: Any = skeleton.model.get_submodule("model.language_model.layers")
    with monkeypatch.context() as patch:
        patch.setattr(layers[3].self_attn, "scaling", 0.5)
        assert not can_deepen(stage)
    assert can_deepen(stage)

    def fail(*args: object) -> None:
        raise UnlikeLayersError

    asked = []
    monkeypatch.setattr(exporting, "deepen", fail)
    monkeypatch.setattr(exporting, "trace", lambda stage, dtype: asked.append(stage))
    exporting._trace(stage, skeleton)
    assert asked == [skeleton.shallow.stage("language"), stage]


def test_a_layer_that_more_than_the_next_one_reads(skeleton: Skeleton, few: ir.Model) -> None:
    model = few.clone()
    residuals = [node for node in model.graph if node.op_type == "Add" and node.meta[SCOPES][-2].endswith(".1")]
    list(model.graph)[-1].replace_input_with(0, residuals[-1].outputs[0])  # the head reads the second layer
    with pytest.raises(UnlikeLayersError, match="more than the third"):
        deepen(model, skeleton.stage("language"))


def test_of_a_large_stage_the_first_layers_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, tower = ("llama", "tiny"), ("clip", "tiny")
    monkeypatch.setitem(DECODERS, decoder, replace(DECODERS[decoder], layers=DEEP))
    hidden, _, *others = checkpoints.TOWERS[tower]
    monkeypatch.setitem(checkpoints.TOWERS, tower, (hidden, DEEP, *others))
    checkpoint = checkpoints.make_checkpoint(tmp_path / "checkpoint", "llava", dtype="bfloat16")
    compared: dict[str, list[int]] = {}
    original = exporting.check_stage

    def check_stage(stage, path, skeleton):
        compared.setdefault(stage.name, []).append(stage.stack.layers if stage.stack else 0)
        return original(stage, path, skeleton)

    monkeypatch.setattr(exporting, "check_stage", check_stage)
    monkeypatch.setattr(exporting, "COMPARED_WHOLE", 0)
    bundle = export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    written = {stage: [0] for stage in ("select", "select_clip", "project", "embed")}
    assert compared == {"vision": [SHALLOW], "language": [SHALLOW]} | written
    assert all(spec.compared for spec in bundle.manifest.stages.values())
    assert validate(bundle.folder).passed
