"""Validation passes on what is right and names what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle
from rediprune.export.validate.validate import validate
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import Bundle


@pytest.mark.parametrize(
    "name",
    [
        *("llava", "llava_next_video", "llava_fp16"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llava_siglip", "video_llava", "llava_copy")),
    ],
)
def test_every_family_passes(name: str, bundle_of: Callable[[str], Path]) -> None:
    report = validate(bundle_of(name))
    assert report.passed, report.failing_stages
    stages = set(Bundle.open(bundle_of(name)).manifest.stages)
    assert {row.stage for row in report.stages} == stages
    if name != "llava_fp16":
        assert all(row.equal and row.jaccard == 1 for row in report.end_to_end)
    kinds = {row.case.split(",")[0] for row in report.end_to_end}
    assert kinds >= {"text only", "image"}
    assert ("video" in kinds) == (name in ("llava_next_video", "video_llava"))


@pytest.mark.parametrize("stage", ["vision", "project", "embed", "language"])
def test_a_corrupted_stage_is_named(
    stage: str, bundle_of: Callable[[str], Path], corrupt: Callable[..., Path], tmp_path: Path
) -> None:
    report = validate(corrupt(bundle_of("llava_copy"), tmp_path / "bundle", stage))
    assert not report.passed
    assert report.failing_stages == [stage]


def test_a_drifting_stage_is_found_by_running_it_eagerly(
    bundle_of: Callable[[str], Path], corrupt: Callable[..., Path], tmp_path: Path
) -> None:
    bad = corrupt(bundle_of("llava_copy"), tmp_path / "bundle", "vision", 4.0)
    assert not all(row.passed for row in validate(bad, eager={"project"}).end_to_end)
    assert all(row.passed for row in validate(bad, eager={"vision"}).end_to_end)


@pytest.mark.family
def test_in_fp16_a_drifting_answer_fails_end_to_end(
    checkpoint_of: Callable[[str], Path], corrupt: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(str(checkpoint_of("llava")))
    good = export_bundle(checkpoint, tmp_path / "good", "fp16", check=False, copy=True)
    bad = corrupt(good.folder, tmp_path / "bad", "vision", 4.0, "float16")
    report = validate(bad, eager={"project"})
    failed = {row.case for row in report.end_to_end if not row.passed}
    assert failed and "text only, keep = 1.0" not in failed
    assert all(row.note or row.gap_tolerance for row in report.end_to_end if not row.equal)
    assert all(row.passed for row in validate(bad, eager={"vision"}).end_to_end)


def test_the_reference_is_computed_once(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("llava"), bundle)
    first = validate(bundle)

    def unexpected(*args: object) -> None:
        raise AssertionError("the eager model was loaded again")

    monkeypatch.setattr("rediprune.runtime.backends.eager_torch.eager_model", unexpected)
    assert validate(bundle).document() == first.document()
    with pytest.raises(AssertionError):
        validate(bundle, refresh=True)


def test_single_stages_and_unknown_ones(bundle_of: Callable[[str], Path]) -> None:
    report = validate(bundle_of("llava"), stages=["select"])
    assert {row.stage for row in report.stages} == {"select"} and not report.end_to_end
    with pytest.raises(RedipruneError, match="vision, select"):
        validate(bundle_of("llava"), stages=["ears"])


def test_a_checkpoint_that_is_gone(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("llava"), bundle)
    opened = Bundle.open(bundle)
    opened.manifest.source.name = str(tmp_path / "nowhere")
    opened.write_manifest()
    with pytest.raises(RedipruneError, match="nowhere"):
        validate(bundle)
