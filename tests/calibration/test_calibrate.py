"""Calibrated bundles: near the source, refused where they cannot run, resumed where they stopped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image
from rediprune.calibration.bundle_graphs import load_graph
from rediprune.calibration.calibrate import calibrate
from rediprune.calibration.evaluation.evaluate import evaluate
from rediprune.calibration.evaluation.question_dataset import read_questions
from rediprune.calibration.quantize.block_weights import Int4WeightPass
from rediprune.calibration.settings import CalibrationSettings
from rediprune.calibration.tasks.media_folder import write_set
from rediprune.export.build.cpu_engines import build_cpu
from rediprune.export.build.tensorrt_engines import build_tensorrt
from rediprune.export.validate.validate import validate
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends.session import open_stage
from rediprune.runtime.bundle import MANIFEST, Bundle, CalibrationSpec, file_sha256

pytestmark = pytest.mark.calibration

STAGES = ["vision", "select", "select_clip", "project", "embed", "language"]


@pytest.fixture(scope="module")
def demo(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint: quantisation errors of random weights say nothing."""
    return Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("demo") / "demo"))


@pytest.fixture(scope="module")
def int8(demo: Path) -> Bundle:
    return calibrate(demo, demo.parent / "int8")


@pytest.fixture
def tiny(bundle_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_of("llava"), tmp_path / "tiny"))


def record(bundle: Bundle) -> CalibrationSpec:
    assert bundle.manifest.calibration is not None
    return bundle.manifest.calibration


def content(folder: Path) -> dict[str, bytes]:
    """A bundle's files; the memory of which hashes were found right is not its content."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".verified.json"
    }


@pytest.mark.smoke
def test_int8_is_near_the_source_and_says_how_near(demo: Path, int8: Bundle) -> None:
    made = record(int8)
    assert made.recipe == dict.fromkeys(("vision", "project", "language"), "int8")
    assert list(int8.manifest.stages) == STAGES
    for stage in made.recipe:
        near = made.fidelity[stage]
        assert near is not None and near.cosine > 0.995 and near.relative_error < 0.1
        assert int8.manifest.stages[stage].precision == "int8"
    source = Bundle.open(demo).manifest
    assert int8.manifest.stages["select"] == source.stages["select"]
    ids = {"input_ids": np.arange(7)[None]}
    tables = [open_stage("ort", Bundle.open(folder), "embed", 0).run(ids)["embeds"] for folder in (demo, int8.folder)]
    assert np.array_equal(*map(np.asarray, tables))
    assert source.refers and not int8.manifest.refers  # a calibrated bundle needs nothing of the checkpoint
    assert made.source_digest == source.digest
    assert int8.manifest.rebuild_command(Path("x")).startswith(f"rediprune calibrate {demo} -o x --recipe int8")


def test_int8_weights_are_symmetric_per_channel_and_a_quarter_of_the_size(demo: Path, int8: Bundle) -> None:
    graph = onnx.load(int8.folder / "onnx/vision.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [array for name, array in stored.items() if name.endswith(".weight.int8")]
    assert len(weights) == 36
    for weight in weights:
        assert weight.dtype == np.int8
        assert (np.abs(weight.astype(int)).max(axis=0) == 127).all()  # every channel uses its whole range
    assert all((array == 0).all() for name, array in stored.items() if name.endswith(".zero"))
    before, after = (Bundle.open(folder).manifest.stages["vision"].weight_bytes for folder in (demo, int8.folder))
    products = sum(weight.size for weight in weights)
    assert after < before - 3 * products + 100_000  # three bytes less each, but for scales


def test_every_product_becomes_an_integer_product_in_onnx_runtime(int8: Bundle, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(int8.folder / "onnx/vision.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 36
    assert kinds.count("MatMul") == 0


def test_int8_answers_as_well_as_the_source(demo: Path, int8: Bundle, tmp_path: Path) -> None:
    questions = read_questions(write_set(tmp_path, "test", seed=5, images=12, clips=0))
    right = {
        folder: [sum(score.right.values()) for score in evaluate(folder, questions, [1.0, 0.15], ["rediprune"])]
        for folder in (demo, int8.folder)
    }
    allowed = 2  # of about 48 questions: the 1 point asked for is measured on more (docs)
    assert all(abs(ours - theirs) <= allowed for ours, theirs in zip(*right.values(), strict=True))


def test_validation_passes_int8_and_fails_what_is_broken(int8: Bundle, tmp_path: Path) -> None:
    report = validate(int8.folder, stages=["vision", "project", "language"])
    assert report.passed
    judged = [row for row in report.stages if row.tolerance is not None]
    assert {row.stage for row in judged} == {"vision", "project", "language"}
    folder = Path(shutil.copytree(int8.folder, tmp_path / "broken"))
    bundle = Bundle.open(folder)
    near = record(bundle).fidelity["vision"]
    assert near is not None
    near.relative_error /= 100  # as though the stage had once been a hundred times as exact
    bundle.write_manifest()
    assert validate(folder, stages=["vision"]).failing_stages == ["vision"]


@pytest.mark.parametrize("recipe", ["fp8", "int4", "int8-dynamic", "fp16"])
def test_other_recipes_are_near_the_source_too(demo: Path, int8: Bundle, recipe: str, tmp_path: Path) -> None:
    made = calibrate(demo, demo.parent / recipe, recipe)
    for stage, near in record(made).fidelity.items():
        assert near is not None and near.cosine > 0.99, stage
    answer = Pipeline.load(made.folder).generate("What is this?", images=[np.zeros((224, 224, 3), np.uint8)], keep=0.15)
    assert answer.token_ids


def test_activations_are_taken_once_for_all_recipes(demo: Path, int8: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("the samples were shown again")

    monkeypatch.setattr("rediprune.calibration.observations.collect", again)
    for ranges in ("percentile", "entropy"):
        made = calibrate(demo, demo.parent / f"int8-{ranges}", CalibrationSettings(ranges=ranges))
        near = record(made).fidelity["vision"]
        assert near is not None and near.cosine > 0.98


def test_an_up_to_date_bundle_is_left_as_it_is(demo: Path, int8: Bundle) -> None:
    stamp = (int8.folder / MANIFEST).stat().st_mtime_ns
    calibrate(demo, int8.folder)
    assert (int8.folder / MANIFEST).stat().st_mtime_ns == stamp


def test_an_interrupted_calibration_goes_on_where_it_stopped(tiny: Path, photo: Path, tmp_path: Path) -> None:
    before = content(tiny)
    shutil.copy(photo, (tmp_path / "photos").mkdir() or tmp_path / "photos")

    def interrupt(stage: str, what: str, fraction: float) -> None:
        if stage == "language":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny, tmp_path / "int8", CalibrationSettings(data=tmp_path / "photos"), progress=interrupt)
    assert not (tmp_path / "int8").exists()
    told: list[tuple[str, str]] = []
    calibrate(
        tiny,
        tmp_path / "int8",
        CalibrationSettings(data=tmp_path / "photos"),
        progress=lambda *what: told.append(what[:2]),
    )
    assert ("vision", "quantising") not in told and ("language", "quantising") in told
    assert not any(stage == "activations" and what != "done" for stage, what in told)
    assert content(tiny) == before
    assert not list(tmp_path.glob(".int8.partial"))


@pytest.mark.parametrize("damage", ["cut short", "no archive", "an array is missing", "an entry is overwritten"])
def test_damaged_activations_are_taken_anew(tiny: Path, photo: Path, damage: str, tmp_path: Path) -> None:
    settings = CalibrationSettings("vision=int8", data=photo.parent, samples=2)
    whole = calibrate(tiny, tmp_path / "whole", settings)
    (file,) = tmp_path.glob(".tiny.activations/*/vision.npz")
    content = file.read_bytes()
    match damage:
        case "cut short":
            file.write_bytes(content[: len(content) // 2])
        case "no archive":
            file.write_bytes(b"PK\x03\x04 nothing")
        case "an array is missing":
            with np.load(file) as stored:
                np.savez(file, **{name: stored[name] for name in stored.files if not name.startswith("rows/")})
        case "an entry is overwritten":
            file.write_bytes(content[:200] + bytes(2000) + content[2200:])
    again = calibrate(tiny, tmp_path / "again", settings)
    assert again.manifest.stages["vision"] == whole.manifest.stages["vision"]
    assert file.read_bytes() == content and len(list(file.parent.iterdir())) == 1


def test_layers_that_are_skipped_stay_as_they_are(tiny: Path, photo: Path, tmp_path: Path) -> None:
    settings = CalibrationSettings(data=photo.parent, samples=1, exclude_layers=("language/head", "*.fc2"))
    made = calibrate(tiny, tmp_path / "int8", settings)
    assert record(made).skipped["language"] == ["head"]
    assert all(name.endswith(".fc2") for name in record(made).skipped["vision"])
    graph = onnx.load(made.folder / "onnx/language.onnx", load_external_data=False).graph
    assert any("head" in tensor.name and tensor.data_type == onnx.TensorProto.FLOAT for tensor in graph.initializer)
    assert not any(tensor.name == "head.weight.int8" for tensor in graph.initializer)


@pytest.mark.parametrize("colour", [0, 255])
def test_pictures_of_one_colour_give_finite_scales(tiny: Path, colour: int, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.full((64, 64, 3), colour, np.uint8)).save(tmp_path / "flat" / "a.png")
    made = calibrate(tiny, tmp_path / "int8", CalibrationSettings(data=tmp_path / "flat"))
    assert record(made).data["samples"] == 1
    for stage in record(made).recipe:
        graph = onnx.load(made.folder / f"onnx/{stage}.onnx").graph
        scales = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".scale")]
        assert scales and all(np.isfinite(s).all() and (s > 0).all() for s in scales)


def test_values_that_are_not_finite_name_the_layer(tiny: Path, photo: Path, tmp_path: Path) -> None:
    opened = Bundle.open(tiny)
    path = tiny / "onnx/vision.onnx"
    model = onnx.load(path, load_external_data=False)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization" and "_1" in node.output[0])
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == norm.input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(32, np.nan, np.float32), scale.name))
    onnx.save(model, path)
    opened.manifest.stages["vision"].files["onnx/vision.onnx"] = file_sha256(path)
    opened.write_manifest()
    with pytest.raises(RedipruneError, match=r"layer 'tower.*layers.0.* is not finite.*\.jpg"):
        calibrate(tiny, tmp_path / "int8", CalibrationSettings(data=photo.parent, samples=1))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"recipe": "int9"}, "'int9' is not known"),
        ({"recipe": "vision=int9"}, "scheme 'int9' is not known"),
        ({"recipe": "tower=int8"}, "stage 'tower' is not one"),
        ({"recipe": "int8,select=int8"}, "always computes in fp32"),
        ({"recipe": "vision=keep"}, "changes no stage"),
        ({"ranges": "guess"}, "minmax, percentile, entropy"),
        ({"samples": 0}, "at least 1"),
        ({"smoothing": 2.0}, r"\[0, 1\]"),
        ({"exclude_layers": ("nothing.*",)}, "names no linear layer; they are called like 'tower"),
    ],
)
def test_bad_settings_are_refused(tiny: Path, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(RedipruneError, match=says):
        calibrate(tiny, tmp_path / "int8", CalibrationSettings(**asked))
    assert {file.name for file in tmp_path.iterdir()} == {"tiny"}


def test_a_backend_that_does_not_take_the_recipe_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match="tensorrt-rtx does not take int8-dynamic"):
        calibrate(tiny, tmp_path / "int8", "int8-dynamic", backend="tensorrt-rtx")
    assert {file.name for file in tmp_path.iterdir()} == {"tiny"}


def test_bad_data_is_refused(tiny: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(RedipruneError, match="holds no images"):
        calibrate(tiny, tmp_path / "int8", CalibrationSettings(data=photos))
    (photos / "a.png").write_bytes(b"no picture")
    with pytest.raises(RedipruneError, match=r"a\.png"):
        calibrate(tiny, tmp_path / "int8", CalibrationSettings(data=photos))
    with pytest.raises(RedipruneError, match="no dataset"):
        calibrate(tiny, tmp_path / "int8", CalibrationSettings(data=tmp_path / "nothing.jsonl"))
    assert not (tmp_path / "int8").exists()


def test_a_calibrated_bundle_is_not_calibrated_again_nor_the_source_replaced(
    demo: Path, int8: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(RedipruneError, match=f"calibrated already.*rediprune calibrate {demo} -o"):
        calibrate(int8.folder, tmp_path / "again")
    with pytest.raises(RedipruneError, match="stays as it is"):
        calibrate(demo, demo)


def test_a_backend_that_cannot_take_it_refuses_at_once(demo: Path, int8: Bundle) -> None:
    dynamic = calibrate(demo, demo.parent / "int8-dynamic", "int8-dynamic")
    with pytest.raises(RedipruneError, match="tensorrt-rtx does not take int8-dynamic"):
        Pipeline.load(dynamic.folder, "tensorrt-rtx")
    assert "ort" not in {limit.backend for limit in record(dynamic).limits}
    assert build_cpu(dynamic.folder, "ort").precision["vision"] == "int8-dynamic"


@pytest.mark.parametrize("family", ["video_llava", pytest.param("llava_next_video", marks=pytest.mark.slow)])
def test_every_family_is_calibrated(family: str, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    made = calibrate(bundle_of(family), tmp_path / "int8", CalibrationSettings(samples=2))
    assert all(near is not None and near.cosine > 0.9 for near in record(made).fidelity.values())


# -- TensorRT-RTX ------------------------------------------------------------------------------------------------------

OLD = {"int8": ["sm_80", "sm_120"], "int4": ["sm_80", "sm_120"], "fp8": ["sm_89", "sm_120"]}


@pytest.mark.parametrize("recipe", ["int8", "fp8", "int4"])
def test_tensorrt_builds_what_was_asked(recipe: str, demo: Path, int8: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'rediprune[tensorrt-rtx]'")
    made = calibrate(demo, demo.parent / recipe, recipe)
    folder = Path(shutil.copytree(made.folder, tmp_path / recipe))
    engines = build_tensorrt(folder, targets=OLD[recipe], profile=["cache=256", "frames=1:1:2"]).engines
    assert engines.compute_capability == OLD[recipe]
    for stage, form in record(made).recipe.items():
        assert form in engines.precision[stage].split("+"), stage
    assert engines.precision["select"] == engines.precision["embed"] == "fp32"


@pytest.mark.parametrize(("recipe", "target"), [("fp8", "sm_86"), ("int4", "sm_75")])
def test_a_gpu_too_old_is_refused_before_building(recipe: str, target: str, demo: Path, int8: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'rediprune[tensorrt-rtx]'")
    made = calibrate(demo, demo.parent / recipe, recipe)
    with pytest.raises(RedipruneError, match=f"{recipe} needs a GPU of"):
        build_tensorrt(made.folder, targets=[target, "sm_120"])


def test_command_line(tiny: Path, photo: Path, tmp_path: Path) -> None:
    import typer
    from rediprune.calibration.cli import add
    from typer.testing import CliRunner

    app = typer.Typer()
    add(app)
    options = ["calibrate", str(tiny), "-o", str(tmp_path / "out"), "--data", str(photo.parent), "--samples", "2"]
    done = CliRunner().invoke(app, [*options, "--recipe", "vision=int8", "--no-smooth", "--json"])
    document = json.loads(done.stdout)
    assert document["recipe"] == {"vision": "int8"}
    assert Bundle.open(tmp_path / "out").manifest.precision == "vision=int8"
    made = []
    for words in (["--alpha", "0.5"], ["--smoothing", "0.5"]):  # the former by earlier versions
        out = ["-o", str(tmp_path / words[0])]
        done = CliRunner().invoke(app, [*options[:2], *out, *options[4:], "--recipe", "project=int8", *words, "--json"])
        made.append(json.loads(done.stdout))
    assert made[0]["options"] == made[1]["options"] and "--smoothing 0.5" in " ".join(made[0]["options"])
    refused = CliRunner().invoke(app, [*options, "--alpha", "0.5", "--smoothing", "0.6"])
    assert isinstance(refused.exception, RedipruneError) and "old name of --smoothing" in str(refused.exception)
    assert "--alpha" not in CliRunner().invoke(app, ["calibrate", "--help"]).stdout


def test_int4_to_the_nearest_needs_no_samples_and_can_be_asked_for_again(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without GPTQ no activation is observed, and its weights are those of the nearest integers."""
    settings = CalibrationSettings("language=int4", samples=2, gptq=False)
    made = calibrate(bundle_of("llava"), tmp_path / "int4", settings)
    expected = load_graph(Bundle.open(bundle_of("llava")), "language")
    Int4WeightPass()(expected)
    model = load_graph(made, "language")
    for name, value in expected.graph.initializers.items():
        if name.endswith(".weight.int4"):
            assert np.array_equal(value.const_value.numpy(), model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
    assert "--no-gptq" in made.manifest.calibration.options  # type: ignore[union-attr]
