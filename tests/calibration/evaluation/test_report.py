"""The report: calibrated bundles beside their source, its tolerances used by validation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from matplotlib.container import BarContainer
from PIL import Image
from rediprune.calibration.calibrate import calibrate
from rediprune.calibration.evaluation.calibrated_bundles import find_bundles
from rediprune.calibration.evaluation.evaluate import EvaluationOptions, evaluate
from rediprune.calibration.evaluation.question_dataset import media_of, read_questions
from rediprune.calibration.evaluation.report import TOLERANCE_MARGIN, ReportOptions, report
from rediprune.calibration.evaluation.similarity import jaccard
from rediprune.calibration.settings import CalibrationSettings
from rediprune.calibration.tasks.media_folder import write_set
from rediprune.export.cli import add
from rediprune.export.validate.validate import validate
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import Bundle, file_sha256
from rediprune.runtime.bundle.lock import making
from typer.testing import CliRunner, Result


def command(*words: str) -> Result:
    app = typer.Typer()
    add(app)
    return CliRunner().invoke(app, ["report", *words])


@pytest.fixture(scope="module")
def bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained checkpoint's bundle and its int8 and bf16 forms."""
    folder = tmp_path_factory.mktemp("bundles")
    shutil.copytree(demo_bundle, folder / "fp32")
    calibrate(folder / "fp32", folder / "int8", CalibrationSettings(samples=16))
    calibrate(folder / "fp32", folder / "bf16", "bf16")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("questions"), "test", images=2, clips=1)


def test_a_report_is_what_its_parts_measure(bundles: Path, dataset: Path) -> None:
    questions = read_questions(dataset)
    before = Bundle.open(bundles / "int8").manifest.calibration
    document = report(
        find_bundles([bundles / "fp32"]), {"all": questions}, ReportOptions((1.0, 0.15), (0.25,), samples=4)
    )
    source, int8 = document["bundles"]
    assert (source["name"], int8["name"]) == ("fp32", "int8") and "bf16" in document["absent"]["bf16"]
    for keep in (1.0, 0.15):
        (ours,) = evaluate(bundles / "int8", questions, [keep])
        (theirs,) = evaluate(bundles / "fp32", questions, [keep])
        said = int8["answers"][f"{keep:g}"]
        assert said["right"] == sum(ours.right.values()) and said["asked"] == len(questions)
        assert said["same_answers"] == ours.same_answers(theirs) / len(questions)
        assert said["gained"] - said["lost"] == sum(ours.right.values()) - sum(theirs.right.values())
        assert source["answers"][f"{keep:g}"]["same_ids"] == 1.0 and source["answers"][f"{keep:g}"]["lost"] == 0

    pipelines = [Pipeline.load(bundles / name) for name in ("int8", "fp32")]
    overlaps = []
    for question in questions:
        images, videos = media_of(question, pipelines[0].bundle, 8)
        ours, theirs = (p.select(question.question, images, videos, keep=0.25) for p in pipelines)
        overlaps += [jaccard(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert min(overlaps) - 1e-9 <= int8["jaccard"]["0.25"] <= max(overlaps)  # four of these questions
    assert 0.3 < int8["jaccard"]["0.25"] < document["noise"]["jaccard"]["0.25"] <= 1.0

    size = sum(file.stat().st_size for file in (bundles / "int8" / "onnx").iterdir())
    assert 0 < int8["disk_bytes"] - size < 2_000_000 and source["weight_bytes"]["language"] > int8["disk_bytes"]
    assert set(int8["stages"]) == {"vision", "project", "language"} and int8["times"] == {}

    # What was measured is noted, seal and engines intact, and validation holds the stages to it.
    after = Bundle.open(bundles / "int8").manifest.calibration
    assert before is not None and after is not None
    assert before.tolerances == {} and list(after.tolerances) == ["ort"] and after.floors is None
    for stage, near in int8["stages"].items():
        capped = min(TOLERANCE_MARGIN * near["greatest_relative_error"], after.largest_tolerance(stage))
        assert after.tolerances["ort"][stage] == capped == after.tolerance("ort", stage)
        assert 0 < near["relative_error"] <= near["greatest_relative_error"] < 0.5
    held = validate(bundles / "int8", "ort", end_to_end=False)
    assert held.passed
    judged = {
        row.stage: row.tolerance
        for row in held.stages
        if row.judged_by == "relative_error" and row.tolerance is not None
    }
    assert {stage: judged[stage] for stage in after.tolerances["ort"]} == after.tolerances["ort"]
    # Nothing is redone.
    assert calibrate(bundles / "fp32", bundles / "int8", CalibrationSettings(samples=16)).manifest.calibration == after


def noted(folder: Path, **changes: object) -> Path:
    """The bundle with other values in its calibration record."""
    bundle = Bundle.open(folder)
    record = bundle.manifest.calibration
    assert record is not None
    bundle.manifest = bundle.manifest.model_copy(update={"calibration": record.model_copy(update=changes)})
    bundle.write_manifest()
    return folder


def test_a_tolerance_that_is_too_low_fails_validation(bundles: Path, tmp_path: Path) -> None:
    strict = {"vision": 1e-6, "project": 1.0, "language": 1.0}
    for name, changes in (("now", {"tolerances": {"ort": strict}}), ("then", {"tolerances": {}, "floors": strict})):
        folder = noted(shutil.copytree(bundles / "int8", tmp_path / name), **changes)
        assert validate(folder, "ort", end_to_end=False).failing_stages == ["vision"]
        if name == "now":  # on another backend it does not count
            assert "vision" not in validate(folder, "openvino", ["vision"]).failing_stages


def test_a_stage_that_is_broken_does_not_pass_because_it_was_measured(
    bundles: Path, dataset: Path, tmp_path: Path
) -> None:
    """Neither by a report on the broken bundle, nor by a tolerance that an earlier version noted without a cap."""
    folder = Path(shutil.copytree(bundles / "int8", tmp_path / "int8"))
    bundle = Bundle.open(folder)
    spec = bundle.manifest.stages["project"]
    path = bundle.path(next(name for name in spec.files if name.endswith(".data")))
    path.write_bytes(bytes(len(path.read_bytes())))  # every weight nought
    spec.files[f"onnx/{path.name}"] = file_sha256(path)
    bundle.write_manifest()
    assert validate(folder, "ort", end_to_end=False).failing_stages == ["project"]
    shutil.copytree(bundles / "fp32", tmp_path / "fp32")
    report(
        find_bundles([tmp_path / "fp32", folder]),
        {"all": read_questions(dataset)},
        ReportOptions((0.15,), (), samples=2),
    )
    record = Bundle.open(folder).manifest.calibration
    assert record is not None and record.tolerances["ort"]["project"] <= 0.5
    assert validate(folder, "ort", end_to_end=False).failing_stages == ["project"]
    noted(folder, tolerances={}, floors={"project": 1.5})
    assert validate(folder, "ort", end_to_end=False).failing_stages == ["project"]


def test_a_bundle_that_cannot_be_noted_in_is_refused_before_anything_is_measured(bundles: Path, dataset: Path) -> None:
    with making(bundles / "int8"), pytest.raises(RedipruneError, match="another process is making or changing"):
        report(find_bundles([bundles / "fp32"]), {}, progress=lambda what, at, total: pytest.fail(what))


def test_the_command_writes_a_page_and_goes_on_from_its_replies(
    bundles: Path, dataset: Path, tmp_path: Path, drawn: list[Any]
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "replies.jsonl"
    words = [str(bundles / "int8"), "--data", str(dataset), "--samples", "2", "--kept", "0.25,0.15"]
    words += ["--keep", "0.15", "--runs", "1", "--threads", "1", "--out", str(out), "--page", str(page)]
    done = command(*words, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert [row["name"] for row in document["bundles"]] == ["fp32", "int8"]
    for row in document["bundles"]:
        assert row["times"]["0.15"]["time_to_first_token"] > row["times"]["0.15"]["stages"]["vision"] > 0
        assert row["peak_memory_bytes"] > 5e7
    text = page.read_text()
    assert document["recommendation"] in text and "![accuracy, kept sets and time](page.png)" in text
    for label in (
        "on disk, MB",
        "peak memory, MB",
        "first token, ms, keep 0.15",
        "(Jaccard), keep 0.25",
        "same answers",
    ):
        assert label in text
    assert_drawn(document, drawn, page.with_suffix(".png"))
    lines = out.read_text()
    again = command(*words[: words.index("--runs")], "--runs", "0", "--threads", "1", "--out", str(out))
    assert again.exit_code == 0 and out.read_text() == lines  # every reply was known
    assert "of the size" in again.stdout  # without times


def assert_drawn(document: dict, drawn: list[Any], path: Path) -> None:
    """Answers, overlaps and times of the document stand in the three panels of the one figure."""
    (figure,) = drawn
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 1500
    answers, overlaps, times = figure.axes
    source, int8 = document["bundles"]
    shown = {bars.get_label(): [bar.get_height() for bar in bars] for bars in bars_of(answers)}
    assert shown == {row["name"]: [100 * row["answers"]["0.15"]["accuracy"]] for row in (source, int8)}
    lines = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in overlaps.lines}
    assert lines["int8"] == {float(keep): overlap for keep, overlap in int8["jaccard"].items()}
    spent = {bars.get_label(): [bar.get_width() for bar in bars] for bars in bars_of(times)}
    assert spent["vision"] == [1e3 * row["times"]["0.15"]["stages"]["vision"] for row in (source, int8)]


def bars_of(panel: Any) -> list[Any]:
    return [container for container in panel.containers if isinstance(container, BarContainer)]


def test_what_cannot_be_reported_on_is_refused(bundles: Path, dataset: Path, tmp_path: Path) -> None:
    lonely = Path(shutil.copytree(bundles / "fp32", tmp_path / "alone" / "fp32"))
    with pytest.raises(RedipruneError, match="rediprune calibrate"):
        find_bundles([lonely])
    with pytest.raises(RedipruneError, match="both uncalibrated"):
        find_bundles([lonely, bundles / "fp32"])
    with pytest.raises(RedipruneError, match="is not a bundle"):
        find_bundles([tmp_path])
    other = Bundle.open(shutil.copytree(bundles / "int8", tmp_path / "other"))
    record = other.manifest.calibration
    assert record is not None
    moved = record.model_copy(update={"source_precision": "fp16", "source_digest": "of another"})
    other.manifest = other.manifest.model_copy(update={"calibration": moved})
    other.write_manifest()
    with pytest.raises(RedipruneError, match="was not made of"):
        find_bundles([bundles / "fp32", other.folder])
    for words, says in (
        (["--keep", "2"], "--keep takes ratios"),
        (["--kept", "much"], "--kept takes ratios"),
        (["--images", "0", "--clips", "0"], "nothing to ask"),
        (["--page", "page.txt"], "ending in .md"),
        (["--data", "no.jsonl"], "no dataset"),
        (["--data", str(dataset), "--backend", "abacus"], "not known"),
    ):
        refused = command(str(bundles / "fp32"), *words).exception
        assert isinstance(refused, RedipruneError) and says in str(refused)
    with pytest.raises(RedipruneError, match="bf16"):
        report(find_bundles([bundles / "bf16"]), {})


def test_a_report_is_of_one_backend(bundles: Path) -> None:
    with pytest.raises(RedipruneError, match="on one backend; name it with --backend"):
        report(
            find_bundles([bundles / "fp32", bundles / "int8"]), {}, ReportOptions(evaluation=EvaluationOptions("auto"))
        )
