"""What was seen of a stage is read as it was written, or not at all."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.calibration.quantize.activation_ranges import Activation
from rediprune.calibration.stage_statistics import HeldOutCase, StageStatistics


def statistics(cases: int = 12) -> StageStatistics:
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    names = ("tower.layers.0/add_1", "x")  # a name with a slash is a name
    seen = {name: Activation(array(4), array(3, 4)) for name in names}
    held_out = [HeldOutCase({"x": array(1, 2), "y/z": array(2)}, {"out": array(1, 5)}) for _ in range(cases)]
    return StageStatistics(seen, held_out)


@pytest.mark.parametrize("cases", [0, 1, 12])  # of which the eleventh is not the second
def test_what_is_saved_is_loaded(cases: int, tmp_path: Path) -> None:
    saved = statistics(cases)
    saved.save(tmp_path / "vision.npz")
    loaded = StageStatistics.load(tmp_path / "vision.npz")
    assert loaded is not None and [file.name for file in tmp_path.iterdir()] == ["vision.npz"]
    assert loaded.activations.keys() == saved.activations.keys()
    for name, seen in saved.activations.items():
        assert np.array_equal(loaded.activations[name].largest, seen.largest)
        assert np.array_equal(loaded.activations[name].rows, seen.rows)
    for one, other in zip(loaded.held_out, saved.held_out, strict=True):
        for ours, theirs in ((one.feed, other.feed), (one.outputs, other.outputs)):
            assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_interrupted_save_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vision.npz"
    statistics(1).save(path)
    content = path.read_bytes()
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        statistics(2).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["vision.npz"] and path.read_bytes() == content


def test_no_file_and_a_folder_are_nothing(tmp_path: Path) -> None:
    assert StageStatistics.load(tmp_path / "gone.npz") is None
    assert StageStatistics.load(tmp_path) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "whole.npz"
    statistics(2).save(path)
    return path


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1), st.binary(max_size=40), st.booleans())
def test_damage_never_raises(whole: Path, where: float, bytes_: bytes, cut: bool) -> None:
    content = whole.read_bytes()
    at = int(where * len(content))
    damaged = whole.with_name("damaged.npz")
    damaged.write_bytes(content[:at] + bytes_ + (b"" if cut else content[at + len(bytes_) :]))
    loaded = StageStatistics.load(damaged)
    assert loaded is None or isinstance(loaded, StageStatistics)


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", allow_pickle=True, **{"largest/x": np.array([{}], object), "rows/x": np.zeros(1)})
    assert StageStatistics.load(tmp_path / "evil.npz") is None
