"""`calibrate --keep-auto`: a threshold for each scope, recorded in the bundle."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.calibration.keep_auto import KeepAutoSettings, calibrate_keep_auto, parse_keep_auto
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import Bundle


def test_what_may_be_lost() -> None:
    assert parse_keep_auto("accuracy=1.5") == 1.5
    with pytest.raises(RedipruneError, match="--keep-auto takes accuracy=POINTS"):
        parse_keep_auto("error=0.02")
    with pytest.raises(RedipruneError):
        parse_keep_auto("accuracy=lots")


def test_the_threshold_is_recorded_and_obeyed(demo_bundle: Path, photo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    said: list[str] = []
    settings = KeepAutoSettings(points=30, questions=8, threads=1)
    found = calibrate_keep_auto(folder, settings, lambda what, number, total: said.append(what))
    assert Bundle.open(folder).manifest.auto_keep == found
    assert set(found.thresholds) == {"frame", "clip"} and found.questions == 8
    assert said[0] == "all tokens" and {"scope frame, threshold -1.000", "scope clip, threshold 0.500"} <= set(said)
    for scope in ("frame", "clip"):
        assert -1 < found.thresholds[scope] < 2 and 0 < found.tokens[scope] <= found.most
        assert found.accuracy[scope] >= found.baseline[scope] - 30
    answer = Pipeline.load(folder).generate("What is red?", [photo], keep="auto", max_new_tokens=1)
    assert 0 < answer.kept_tokens < answer.visual_tokens


def test_a_bundle_that_answers_nothing_is_refused(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))
    with pytest.raises(RedipruneError, match="answers none of 4 questions right"):
        calibrate_keep_auto(folder, KeepAutoSettings(points=1, questions=4, threads=1))
    assert Bundle.open(folder).manifest.auto_keep is None


def test_no_threshold_is_recorded_where_even_the_most_tokens_lose_too_much(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    settings = KeepAutoSettings(points=0, most=0.005, questions=8, threads=1)  # one token of each frame
    with pytest.raises(RedipruneError, match=r"with 0\.005 of the tokens more than 0 points are lost already"):
        calibrate_keep_auto(folder, settings)
    assert Bundle.open(folder).manifest.auto_keep is None
