"""Calibrations of one source may run at the same time: what they share is whole, and none takes another's for its own."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rediprune.calibration.data import open_data
from rediprune.calibration.quantize.activation_ranges import Activation
from rediprune.calibration.sensitivity import _read, _write
from rediprune.calibration.stage_statistics import HeldOutCase, StageStatistics
from rediprune.runtime.bundle import Bundle, Sensitivity

CALIBRATE = """
import sys
from rediprune.calibration.calibrate import calibrate
from rediprune.calibration.settings import CalibrationSettings
calibrate(sys.argv[1], sys.argv[2], CalibrationSettings("vision=int8,project=int8", samples=int(sys.argv[3])))
"""


@pytest.mark.slow
def test_two_calibrations_by_two_processes_are_as_one_after_the_other(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of other numbers of samples, so that the data that they draw are others too."""
    place = tmp_path / "together"
    source = Path(shutil.copytree(bundle_of("llava"), place / "source"))
    command = [sys.executable, "-c", CALIBRATE, str(source)]
    sizes = (3, 5, 5)
    runs = [
        subprocess.Popen([*command, str(place / f"made-{at}"), str(count)], stderr=subprocess.PIPE, text=True)
        for at, count in enumerate(sizes)
    ]
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    together = [Bundle.open(place / f"made-{at}").manifest for at in range(len(sizes))]
    shutil.rmtree(place / ".source.activations")
    for manifest, count in zip(together[:2], sizes, strict=False):
        alone = tmp_path / f"alone-{count}"
        subprocess.run([*command, str(alone), str(count)], check=True)
        expected = Bundle.open(alone).manifest
        assert manifest.calibration is not None and expected.calibration is not None
        assert manifest.calibration.data == expected.calibration.data
        assert {name: stage.files for name, stage in manifest.stages.items()} == {
            name: stage.files for name, stage in expected.stages.items()
        }
    assert together[1].stages == together[2].stages


def test_statistics_are_whole_whoever_writes_them(tmp_path: Path) -> None:
    path, random = tmp_path / "vision.npz", np.random.default_rng(0)

    def save(at: int) -> None:
        rows = np.full((200, 1000), at, np.float32)
        held_out = [HeldOutCase({"x": random.standard_normal(100)}, {"y": np.full(3, at)})]
        StageStatistics({"a": Activation(rows[0], rows)}, held_out).save(path)
        found = StageStatistics.load(path)
        assert found is not None and (found.activations["a"].rows == found.activations["a"].largest[0]).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(40)))
    assert [left.name for left in tmp_path.iterdir()] == ["vision.npz"]


def test_what_another_measured_is_kept(tmp_path: Path) -> None:
    def measured(unit: str) -> dict[str, Sensitivity]:
        one = Sensitivity(stage="vision", unit=unit, layers=[unit], weights=1, error=0.1, logits=0.1, tokens=1.0)
        return {unit: one}

    _write(tmp_path / "vision.json", measured("a"))
    _write(tmp_path / "vision.json", measured("b"))
    assert list(_read(tmp_path / "vision.json")) == ["a", "b"]


@pytest.mark.parametrize("videos", [False, True])
def test_sets_of_other_sizes_do_not_share_a_list(videos: bool, tmp_path: Path) -> None:
    large = open_data(None, 6, 0, videos, tmp_path)
    expected = [question.question for question in large.samples]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda count: open_data(None, count, 0, videos, tmp_path), (6, 2, 6, 4, 6)))
    for data in drawn[::2]:
        assert [question.question for question in data.samples] == expected and data.sha256 == large.sha256
