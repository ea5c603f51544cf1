"""A bundle is in its place whole, or what there was stays; ended at any moment, nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import MANIFEST, Bundle
from rediprune.runtime.bundle.lock import changing, making
from rediprune.runtime.bundle.siblings import old_of, partial_of
from rediprune.runtime.bundle.staging import Staging, check_target

KEY = {"made": "of this"}
# Publishes a bundle that is whole, and is killed (kill -9) at a call of the system.
PUBLISH = """
import os, signal, sys
from pathlib import Path
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.bundle.lock import making
from rediprune.runtime.bundle.staging import Staging

place, call, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls, original = 0, getattr(os, call)

def killing(*args, **options):
    global calls
    calls += 1
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)

with making(place):
    staging = Staging(place, {"made": "of this"})
    manifest = Bundle.open(staging.folder, verify=False).manifest
    setattr(os, call, killing)
    staging.publish(manifest)
"""


@pytest.fixture
def place(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A bundle of tool "old", and one of tool "new" that is ready to take its place."""
    folder = make_bundle(tmp_path / "bundle", tool="old").folder
    ready(folder, make_bundle)
    return folder


def ready(folder: Path, make_bundle: Callable[..., Bundle]) -> None:
    staging = Staging(folder, KEY)
    bundle = make_bundle(staging.folder, tool="new")
    for name, stage in bundle.manifest.stages.items():
        staging.finish(name, stage)


def tool(folder: Path) -> str:
    return Bundle.open(folder, remember=False).manifest.tool_version


def killed(place: Path, call: str, at: int) -> None:
    done = subprocess.run([sys.executable, "-c", PUBLISH, str(place), call, str(at)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_bundle_takes_the_place_of_another(place: Path) -> None:
    with making(place):
        staging = Staging(place, KEY)
        assert staging.finished("vision") is not None
        staging.publish(Bundle.open(staging.folder).manifest)
    assert tool(place) == "new"
    assert sorted(path.name for path in place.parent.iterdir()) == [".bundle.lock", "bundle"]
    assert {path.name for path in place.iterdir()} == {MANIFEST, "onnx", "processor"}


def test_killed_before_the_first_rename(place: Path) -> None:
    """The old bundle is in its place; of the new one nothing has to be made again."""
    killed(place, "rename", 1)
    assert tool(place) == "old"
    with making(place):
        assert Staging(place, KEY).finished("vision") is not None
        assert tool(partial_of(place)) == "new"


def test_killed_between_the_renames(place: Path) -> None:
    """Nothing is in the bundle's place. Whoever opens it is told, and the next run has the new bundle there first."""
    killed(place, "rename", 2)
    assert not place.exists() and tool(partial_of(place)) == "new" and tool(old_of(place)) == "old"
    with pytest.raises(RedipruneError, match="run the same command again, which brings it back"):
        Bundle.open(place)
    with making(place):
        assert tool(place) == "new"
        Staging(place, {"made": "of something else"})  # would remove what was made of this
    assert tool(place) == "new"
    assert {path.name for path in place.iterdir()} == {MANIFEST, "onnx", "processor"}
    assert not old_of(place).exists()


def test_killed_between_the_renames_and_the_new_one_damaged(place: Path) -> None:
    killed(place, "rename", 2)
    (partial_of(place) / "onnx/vision.onnx.data").write_bytes(b"?" * 16)
    with changing(place) as bundle:
        assert bundle.manifest.tool_version == "old"
    assert tool(place) == "old" and not old_of(place).exists()


def test_killed_between_the_renames_and_neither_whole(place: Path, make_bundle: Callable[..., Bundle]) -> None:
    killed(place, "rename", 2)
    for copy in (partial_of(place), old_of(place)):
        (copy / "onnx/vision.onnx.data").write_bytes(b"?" * 16)
    with making(place):
        assert not place.exists() and old_of(place).is_dir()
        shutil.rmtree(partial_of(place))
        ready(place, make_bundle)
        Staging(place, KEY).publish(Bundle.open(partial_of(place)).manifest)
    assert tool(place) == "new" and not old_of(place).exists()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_while_tidying_up(at: int, place: Path) -> None:
    killed(place, "unlink", at)
    assert tool(place) == "new"
    with changing(place):
        pass
    assert {path.name for path in place.iterdir()} == {MANIFEST, "onnx", "processor"}
    assert sorted(path.name for path in place.parent.iterdir()) == [".bundle.lock", "bundle"]


def test_a_rename_that_fails_puts_the_old_bundle_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a file of the new one may be open."""
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == partial_of(place):
            raise PermissionError(13, "The process cannot access the file", str(self))
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RedipruneError, match="cannot be written to"), making(place):
        Staging(place, KEY).publish(Bundle.open(partial_of(place)).manifest)
    assert tool(place) == "old" and not old_of(place).exists()


def test_an_interrupted_first_run_is_not_taken_for_a_bundle(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    """A manifest lies in a bundle in the making too, while its accuracy is measured."""
    ready(tmp_path / "bundle", make_bundle)
    with making(tmp_path / "bundle"):
        assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["onnx/vision.onnx", "onnx/vision.onnx.data"])
def test_a_finished_stage_whose_file_changed_is_made_again(name: str, place: Path) -> None:
    staging = Staging(place, KEY)
    assert staging.finished("vision") is not None
    path = staging.folder / name
    stat = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert staging.finished("vision") is None
    path.unlink()
    assert staging.finished("vision") is None


@pytest.mark.parametrize("note", ["", "{", "[]", '{"spec": {}}', '{"file": "onnx/vision.onnx"}'])
def test_a_damaged_note_of_a_stage_is_none(note: str, place: Path) -> None:
    (partial_of(place) / "vision.done").write_text(note)
    assert Staging(place, KEY).finished("vision") is None


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "/dev/null/x"])
def test_what_is_no_place_for_a_folder(name: str, tmp_path: Path) -> None:
    place = name if name.startswith("/") else f"{tmp_path}/{name}"
    with pytest.raises(RedipruneError) as error, making(check_target(place)):
        pytest.fail("made")
    assert "\n" not in str(error.value) and "choose another folder" in str(error.value)
