"""The whole way: a checkpoint, its forms, the plan that `auto` follows, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.optimize.candidates import recipes
from rediprune.export.optimize.optimize import optimize
from rediprune.export.optimize.optimize_settings import OptimizeSettings
from rediprune.export.optimize.plan_page import plan_page
from rediprune.runtime import Pipeline
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.machine import fingerprint

from ...support.command_line import CommandLine


@pytest.mark.calibration
@pytest.mark.slow
def test_the_demo_checkpoint_becomes_a_bundle_that_answers_as_well(demo_bundle: Path, tmp_path: Path) -> None:
    settings = OptimizeSettings("accuracy=2", samples=8, questions=20)
    made = optimize(demo_bundle, tmp_path / "fast", settings)
    plan = made.plan
    assert plan.machine == fingerprint() and plan.budget == "accuracy=2"
    assert plan.outcome["equal to eager PyTorch within tolerance"] == 1
    assert max(lost for name, lost in plan.outcome.items() if name.startswith("points")) <= 2
    pipeline = Pipeline.load(made.bundle.folder)
    assert {stage: pipeline.backends[stage] for stage in plan.backends} == plan.backends
    assert all("measured by rediprune optimize" in pipeline.reasons[stage] for stage in plan.backends)
    chosen = {form.stage: form for form in plan.tried if form.chosen}
    assert set(chosen) == {"vision", "language"}
    for stage, form in chosen.items():
        assert made.bundle.manifest.stages[stage].precision == form.precision
        assert form.seconds is not None and form.error is not None and form.error <= 0.12
    page = plan_page(made, "rediprune optimize")
    assert page.count("| chosen |") == 2
    assert not list(tmp_path.glob(".fast.candidates"))


@pytest.mark.trace
def test_an_exact_budget_keeps_float32_and_the_source_stays_as_it_was(
    bundle_of: Callable[[str], Path], tmp_path: Path, rediprune: CommandLine
) -> None:
    source = Bundle.open(shutil.copytree(bundle_of("llava"), tmp_path / "source"))
    done = rediprune("optimize", source.folder, "-o", tmp_path / "exact", "--budget", "exact", "--json")
    document = json.loads(done.stdout)
    made = Bundle.open(tmp_path / "exact")
    assert {name: spec.sha256 for name, spec in made.manifest.stages.items()} == {
        name: spec.sha256 for name, spec in source.manifest.stages.items()
    }
    assert {form["precision"] for form in document["tried"]} == {"fp32"}
    assert document["outcome"]["equal to eager PyTorch within tolerance"] == 1
    assert Bundle.open(source.folder).manifest.plan is None


@pytest.mark.rtx
@pytest.mark.trace
def test_engines_of_a_gpu_take_part_and_say_why_they_cannot_run(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(backend: str) -> str | None:
        return None if backend in ("ort", "tensorrt-rtx") else "not tried here"

    monkeypatch.setattr("rediprune.export.optimize.gpu_forms.missing_for", missing)
    monkeypatch.setattr("rediprune.export.optimize.candidates.missing_for", missing)
    source = Path(shutil.copytree(bundle_of("llava"), tmp_path / "source"))
    plan = optimize(source, tmp_path / "exact", OptimizeSettings("exact")).plan
    assert "tensorrt-rtx" in Bundle.open(source).manifest.engines  # it was built for what would be here
    tried = {(form.stage, form.backend): form for form in plan.tried}
    assert tried.keys() == {(stage, name) for stage in ("vision", "language") for name in ("ort", "tensorrt-rtx")}
    for stage in ("vision", "language"):
        assert "GPU" in tried[stage, "tensorrt-rtx"].note and tried[stage, "tensorrt-rtx"].seconds is None
        assert plan.backends[stage] == "ort"


def test_a_gpu_has_recipes_of_its_own(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(bundle_of("llava"))
    monkeypatch.setattr("rediprune.export.optimize.gpu_forms.missing_for", lambda backend: "there is no GPU")
    assert not [recipe for recipe in recipes(bundle) if "fp" in recipe]
    monkeypatch.setattr("rediprune.export.optimize.gpu_forms.missing_for", lambda backend: None)
    assert {"vision=fp16,language=fp16", "vision=fp8,language=fp8"} < set(recipes(bundle))


def test_a_bundle_cannot_be_its_own_source(bundle_of: Callable[[str], Path]) -> None:
    folder = bundle_of("llava")
    with pytest.raises(RedipruneError, match="which is not replaced; give -o another folder"):
        optimize(folder, folder)


@pytest.mark.family
def test_half_precision_is_refused(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match="is in fp16, which no form can be made of; export it in fp32"):
        optimize(bundle_of("llava_fp16"), tmp_path / "fast")
    assert not (tmp_path / "fast").exists()
