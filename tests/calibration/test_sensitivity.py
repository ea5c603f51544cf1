"""What layers cost is measured one by one, and a budget leaves those that cost too much as they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from rediprune.calibration.budget import parse_budget
from rediprune.calibration.bundle_graphs import load_graph
from rediprune.calibration.calibrate import calibrate
from rediprune.calibration.data import open_data
from rediprune.calibration.evaluation.evaluate import evaluate
from rediprune.calibration.evaluation.question_dataset import read_questions
from rediprune.calibration.quantize.linear_layers import linear_layers
from rediprune.calibration.sensitivity import sensitivity
from rediprune.calibration.settings import CalibrationSettings
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends.session import open_stage
from rediprune.runtime.bundle import MANIFEST, Bundle, CalibrationSpec, file_sha256
from rediprune.runtime.bundle.seal import _earlier_digest

pytestmark = pytest.mark.calibration

MEDIA = Path(__file__).parents[1] / "media"
OUTLIER = "tower.encoder.layers.1.mlp.fc1"
SIZE = 3000.0
QUESTIONS = ("What is this?", "Where is it?", "Which colour is it?", "How many are there?")


@pytest.fixture(scope="module")
def source(bundle_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle of the same function as ever, one of whose layers gets a channel far larger than the others."""
    folder = Path(shutil.copytree(bundle_of("llava"), tmp_path_factory.mktemp("sensitive") / "tiny"))
    bundle = Bundle.open(folder)
    (layer,) = [one for one in linear_layers(load_graph(bundle, "vision")) if one.name == OUTLIER]
    path = folder / "onnx/vision.onnx"
    model = onnx.load(path, load_external_data=False)
    norm = next(node for node in model.graph.node if layer.input.name in node.output)
    factor = np.ones(layer.shape[0], np.float32)
    factor[3] = SIZE
    parts = {value: constant(bundle, value) * factor for value in norm.input[1:]}
    product = next(node for node in model.graph.node if layer.node.outputs[0].name in node.output)
    product.input[1] = f"{OUTLIER}.weight.T"
    parts[product.input[1]] = layer.weight() / factor[:, None]
    for name, array in parts.items():
        for old in [tensor for tensor in model.graph.initializer if tensor.name == name]:
            model.graph.initializer.remove(old)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, path)
    bundle.manifest.stages["vision"].files["onnx/vision.onnx"] = file_sha256(path)
    bundle.write_manifest()
    return folder


def constant(bundle: Bundle, name: str) -> np.ndarray:
    tensor = load_graph(bundle, "vision").graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def record(bundle: Bundle) -> CalibrationSpec:
    assert bundle.manifest.calibration is not None
    return bundle.manifest.calibration


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that the source answers right, each with what it says itself."""
    folder = tmp_path_factory.mktemp("questions")
    pipeline = Pipeline.load(source)
    lines = []
    for photo in sorted(MEDIA.glob("*.jpg")):
        shutil.copy(photo, folder)
        for question in QUESTIONS:
            answer = pipeline.generate(question, [photo], keep=1.0, max_new_tokens=16, temperature=0.0)
            lines.append({"image": photo.name, "question": question, "answer": answer.text})
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def errors_of_vision(source: Path, made: Path, data: Path, samples: int) -> list[float]:
    """Of the features of each picture held out, on its own way from file to features."""
    shown = open_data(data, samples, 0, False, data.parent)
    processor = Pipeline.load(source).processor
    found = []
    for question in shown.held_out:
        pixels = {"pixel_values": processor.pixel_values([Image.open(question.media).convert("RGB")], False)}
        ours, theirs = (
            np.asarray(open_stage("ort", Bundle.open(folder), "vision", 0).run(pixels)["features"])
            for folder in (made, source)
        )
        found.append(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)))
    return found


def test_the_layer_with_the_outlier_is_found(source: Path, data: Path) -> None:
    found = {one.unit: one for one in sensitivity(source, CalibrationSettings("vision=int8", data, 4, smoothing=None))}
    worst = found.pop(OUTLIER)
    assert found
    assert worst.layers == [OUTLIER] and worst.weights == 32 * 64
    for one in found.values():
        assert worst.error > 10 * one.error > 0
        assert worst.logits > 3 * one.logits > 0
        assert worst.tokens <= one.tokens <= 1
        assert one.kept is not None and worst.kept is not None and 0 <= worst.kept < one.kept <= 1
    assert worst.tokens < 1
    # SmoothQuant takes the outlier over into the weights.
    smoothed = {one.unit: one for one in sensitivity(source, CalibrationSettings("vision=int8", data, 4))}
    assert smoothed[OUTLIER].error < worst.error / 10


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("int8-dynamic", marks=pytest.mark.calibration),
        "int4",
        pytest.param("fp8", marks=pytest.mark.calibration),
    ],
)
def test_every_form_of_single_layers_has_sensitivities(form: str, source: Path, data: Path) -> None:
    found = sensitivity(source, CalibrationSettings(f"language={form}", data, 4))
    layers = [layer.name for layer in linear_layers(load_graph(Bundle.open(source), "language"))]
    assert [layer for one in found for layer in one.layers] == layers
    assert any(len(one.layers) == 3 and "q_proj+k_proj+v_proj" in one.unit for one in found)
    for one in found:
        assert 0 < one.error < 1 and 0 < one.logits < 1 and 0 <= one.tokens <= 1
        assert one.kept is None  # which tokens are kept was decided before


@pytest.mark.calibration
def test_a_budget_leaves_the_one_layer_and_is_met(source: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": data, "samples": 4, "smoothing": None}
    plain = calibrate(source, tmp_path / "plain", CalibrationSettings("vision=int8", **options))
    made = calibrate(
        source, tmp_path / "made", CalibrationSettings("vision=int8", budget=parse_budget("error=5%"), **options)
    )
    assert max(errors_of_vision(source, plain.folder, data, 4)) > 0.05
    assert max(errors_of_vision(source, made.folder, data, 4)) <= 0.05
    told = record(made)
    assert told.budget == "error=0.05"
    assert told.skipped == {"vision": [OUTLIER]}
    assert [one.unit for one in told.sensitivity if not one.quantised] == [OUTLIER]
    assert len(told.sensitivity) == 8
    near = told.fidelity["vision"]
    assert near is not None and told.measured == {"vision": near.relative_error} and near.relative_error <= 0.05
    names = {tensor.name for tensor in onnx.load(made.folder / "onnx/vision.onnx").graph.initializer}
    assert f"{OUTLIER}.weight.int8" not in names
    assert "tower.encoder.layers.1.mlp.fc2.weight.int8" in names
    assert "--budget error=0.05" in made.manifest.rebuild_command(made.folder)
    stamp = (made.folder / MANIFEST).stat().st_mtime_ns
    calibrate(source, made.folder, CalibrationSettings("vision=int8", budget=parse_budget("error=0.05"), **options))
    assert (made.folder / MANIFEST).stat().st_mtime_ns == stamp


def test_a_budget_that_everything_meets_needs_no_choice(source: Path, data: Path, tmp_path: Path) -> None:
    told = record(
        calibrate(
            source, tmp_path / "made", CalibrationSettings("project=int8", data, 4, budget=parse_budget("error=0.5"))
        )
    )
    assert told.sensitivity == [] and told.skipped == {} and told.recipe == {"project": "int8"}
    assert 0 < told.measured["project"] <= 0.5


@pytest.mark.calibration
def test_a_stage_that_cannot_meet_it_stays_as_it_is(source: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": data, "samples": 4}
    recipe = "vision=int8,project=int4"
    near = record(calibrate(source, tmp_path / "plain", CalibrationSettings(recipe, **options))).fidelity["vision"]
    alone = min(one.error for one in sensitivity(source, CalibrationSettings("project=int4", **options)))
    assert near is not None and near.relative_error < alone  # four bits are fewer than eight
    budget = parse_budget(f"error={(near.relative_error + alone) / 2}")
    made = calibrate(source, tmp_path / "made", CalibrationSettings(recipe, budget=budget, **options))
    told = record(made)
    assert told.recipe == {"vision": "int8"}
    assert told.measured == {"vision": near.relative_error}
    assert {one.stage for one in told.sensitivity} == {"project"}
    assert not any(one.quantised for one in told.sensitivity)
    assert made.manifest.stages["project"].precision == "fp32"
    assert not any(limit.backend == "tensorrt" for limit in told.limits)  # which int4 would have
    kept = {"kept": np.random.default_rng(0).standard_normal((1, 5, 32)).astype(np.float32)}
    ours, theirs = (
        np.asarray(open_stage("ort", Bundle.open(folder), "project", 0).run(kept)["visual_embeds"])
        for folder in (made.folder, source)
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.calibration
def test_a_budget_that_nothing_meets_is_said(source: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match=r"no layer can be quantised within error=1e-07: 'vision/.*allow more"):
        calibrate(
            source, tmp_path / "made", CalibrationSettings("vision=int8", data, 4, budget=parse_budget("error=1e-7"))
        )
    assert not (tmp_path / "made").exists()


@pytest.mark.calibration
def test_a_budget_of_accuracy_is_met(source: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": data, "samples": 4, "smoothing": None}
    questions = read_questions(data)

    def right(folder: Path) -> list[int]:
        return [sum(score.right.values()) for score in evaluate(folder, questions, [1.0, 0.15])]

    plain = calibrate(source, tmp_path / "plain", CalibrationSettings("vision=int8,project=int8", **options))
    before = right(source)
    assert before[0] == len(questions)
    allowed = 60.0  # a model of random weights says something else at the least change
    lost = [100 * (theirs - ours) / len(questions) for ours, theirs in zip(right(plain.folder), before, strict=True)]
    assert max(lost) > allowed
    budget = parse_budget(f"accuracy={allowed:g}")
    made = calibrate(
        source, tmp_path / "made", CalibrationSettings("vision=int8,project=int8", budget=budget, **options)
    )
    lost = [100 * (theirs - ours) / len(questions) for ours, theirs in zip(right(made.folder), before, strict=True)]
    told = record(made)
    assert max(lost) <= allowed
    assert list(told.measured.values()) == pytest.approx(lost)
    assert OUTLIER in told.skipped["vision"]
    assert told.skipped["vision"] == sorted(
        name for one in told.sensitivity if not one.quantised for name in one.layers if one.stage == "vision"
    )


def test_accuracy_needs_answers_that_can_be_lost(source: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match="no questions with answers"):
        CalibrationSettings(data=data.parent, budget=parse_budget("accuracy=1"))
    wrong = data.parent / "wrong.jsonl"
    wrong.write_text("\n".join(json.dumps(json.loads(s) | {"answer": "no"}) for s in data.read_text().splitlines()))
    with pytest.raises(RedipruneError, match="answers none of 12 questions right"):
        calibrate(
            source, tmp_path / "made", CalibrationSettings("project=int8", wrong, 4, budget=parse_budget("accuracy=1"))
        )


@pytest.mark.calibration
def test_an_interrupted_measurement_goes_on_where_it_stopped(source: Path, data: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def interrupt(stage: str, what: str, fraction: float) -> None:
        if "alone" in what:
            asked.append(what)
            if len(asked) == 4:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"data": data, "samples": 5, "smoothing": None, "budget": parse_budget("error=0.05")}
    settings = CalibrationSettings("vision=int8", **options)
    with pytest.raises(KeyboardInterrupt):
        calibrate(source, tmp_path / "made", settings, progress=interrupt)
    assert not (tmp_path / "made").exists()
    told: list[str] = []
    made = calibrate(source, tmp_path / "made", settings, progress=lambda _, what, __: told.append(what))
    again = [what for what in told if "alone" in what]
    assert again[0] == asked[3] and len(again) == 8 - 3
    assert record(made).skipped == {"vision": [OUTLIER]}


def test_bundles_of_before_read_as_ever(source: Path, data: Path, tmp_path: Path) -> None:
    made = calibrate(source, tmp_path / "made", CalibrationSettings("project=int8", data, 4))
    path = made.folder / MANIFEST
    document = json.loads(path.read_text())
    for name in ("budget", "measured", "sensitivity"):
        del document["calibration"][name]
    document["digest"] = _earlier_digest(document)
    path.write_text(json.dumps(document))
    assert record(Bundle.open(made.folder)).budget == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "fp16", "budget": "error=0.1"}, "fp16 takes the whole of stage"),
        ({"recipe": "vision=int8,language=bf16", "budget": "accuracy=1"}, "bf16 takes the whole of stage 'language'"),
        ({"budget": "1%"}, "error=RELATIVE or accuracy=POINTS"),
        ({"budget": "error=much"}, "takes a number, not 'much'"),
        ({"budget": "error=0"}, "more than 0"),
        ({"budget": "error=nan"}, "more than 0"),
        ({"budget": "error=200%"}, "less than 1"),
        ({"budget": "accuracy=-1"}, "0 or more"),
        ({"budget": "accuracy=1", "questions": 0}, "questions must be at least 1"),
    ],
)
def test_bad_budgets_are_refused(source: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    options = dict(options)
    with pytest.raises(RedipruneError, match=says):
        budget = parse_budget(options.pop("budget"))
        calibrate(source, tmp_path / "made", CalibrationSettings(budget=budget, **options))
    assert not list(tmp_path.iterdir())


def test_halves_have_no_sensitivities(source: Path) -> None:
    with pytest.raises(RedipruneError, match="fp16 takes the whole of stage"):
        sensitivity(source, "fp16")


def test_command_line(source: Path, data: Path, tmp_path: Path) -> None:
    import typer
    from rediprune.calibration.cli import add
    from rediprune.runtime.cli.inspect_command import inspect
    from typer.testing import CliRunner

    app = typer.Typer()
    add(app)
    app.command("inspect")(inspect)
    common = ["--recipe", "vision=int8", "--data", str(data), "--samples", "4", "--no-smooth"]
    done = CliRunner().invoke(app, ["sensitivity", str(source), *common, "--json"])
    found = json.loads(done.stdout)
    assert max(found, key=lambda one: one["error"])["unit"] == OUTLIER
    page = tmp_path / "page.md"
    done = CliRunner(env={"COLUMNS": "180"}).invoke(app, ["sensitivity", str(source), *common, "--page", str(page)])
    assert next(line for line in page.read_text().splitlines() if "tower" in line).split(" | ")[1] == OUTLIER
    assert next(line for line in done.stdout.splitlines() if "tower" in line).split()[1] == OUTLIER
    out = str(tmp_path / "made")
    done = CliRunner(env={"COLUMNS": "180"}).invoke(
        app, ["calibrate", str(source), "-o", out, *common, "--budget", "error=5%"]
    )
    assert "1 of 8 layer groups stay in fp32" in done.stdout
    assert "6 samples say little" in done.stdout
    done = CliRunner(env={"COLUMNS": "180"}).invoke(app, ["inspect", out])
    (line,) = [line for line in done.stdout.splitlines() if OUTLIER in line]
    assert line.split()[-1] == "fp32"
