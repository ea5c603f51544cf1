"""What was verified is not hashed again; what is another file, or may be, is."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import Bundle, file_sha256, integrity, verified_files
from rediprune.runtime.bundle.verified_files import VerifiedFiles

DATA = "onnx/vision.onnx.data"


@pytest.fixture
def small(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "small").folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed from now on."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(integrity, "file_sha256", noted)
    return names


def change_behind_the_clock(path: Path) -> None:
    """Other contents; size, and the time of the last write, as they were."""
    stat = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_was_found_right_is_not_hashed_again(small: Path, hashed: list[str]) -> None:
    Bundle.open(small)
    assert len(hashed) == 4
    Bundle.open(small)
    assert len(hashed) == 4
    Bundle.open(small, remember=False)
    assert len(hashed) == 8
    (small / DATA).touch()
    Bundle.open(small)
    assert hashed[8:] == ["vision.onnx.data"]
    assert not list(small.rglob(".verified*"))


@pytest.mark.parametrize("how", ["copytree", "rsync", "tar"])
def test_a_copy_brings_no_record_along(how: str, small: Path, tmp_path: Path) -> None:
    """Whatever tool copies a bundle with its times: what was changed on the way is found out."""
    Bundle.open(small)
    copy = tmp_path / "copy"
    if how == "copytree":
        shutil.copytree(small, copy, copy_function=shutil.copy2)
    elif how == "rsync":
        subprocess.run(["cp", "-a", str(small), str(copy)], check=True)
    else:
        shutil.make_archive(str(tmp_path / "packed"), "tar", small)
        shutil.unpack_archive(tmp_path / "packed.tar", copy, filter="data")
    change_behind_the_clock(copy / DATA)
    assert (copy / DATA).stat().st_mtime_ns // 10**9 == (small / DATA).stat().st_mtime_ns // 10**9
    with pytest.raises(RedipruneError, match="damaged"):
        Bundle.open(copy)
    shutil.rmtree(small)
    copy.rename(small)  # in the place of the one that was verified
    with pytest.raises(RedipruneError, match="damaged"):
        Bundle.open(small)


def test_an_old_record_in_the_bundle_is_not_read(small: Path) -> None:
    """Up to 0.1.0 the record lay in the bundle, and a copy brought it along."""
    stat = (small / DATA).stat()
    record = {DATA: [stat.st_size, stat.st_mtime_ns, Bundle.open(small, verify=False).expected_files()[DATA]]}
    (small / ".verified.json").write_text(json.dumps(record))
    change_behind_the_clock(small / DATA)
    with pytest.raises(RedipruneError, match="damaged"):
        Bundle.open(small)


def test_a_file_that_was_changed_behind_the_clock_is_found_out(small: Path) -> None:
    Bundle.open(small)
    change_behind_the_clock(small / DATA)
    with pytest.raises(RedipruneError, match="damaged"):
        Bundle.open(small)


def test_what_was_found_wrong_is_forgotten(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives other bytes without any file having changed: once seen, it stays seen."""
    Bundle.open(small)
    with monkeypatch.context() as patch:
        patch.setattr(integrity, "file_sha256", lambda path: "0" * 64)
        with pytest.raises(RedipruneError, match="damaged"):
            Bundle.open(small, remember=False)
        with pytest.raises(RedipruneError, match="damaged"):
            Bundle.open(small)


@pytest.mark.parametrize("broken", ["{", "[1]", '{"files": 3}', '{"files": {"onnx/vision.onnx": "?"}}', ""])
def test_a_damaged_record_is_no_record(broken: str, small: Path, hashed: list[str]) -> None:
    Bundle.open(small)
    for path in (verified_files.cache_folder() / "verified").iterdir():
        path.write_text(broken)
    Bundle.open(small)
    assert len(hashed) == 8


def test_without_a_cache_to_write_to_everything_is_hashed(
    small: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REDIPRUNE_CACHE", str(tmp_path / "file"))
    Bundle.open(small)
    Bundle.open(small)
    assert len(hashed) == 8


def test_records_of_bundles_that_are_gone_are_removed(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIPRUNE_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        Bundle.open(make_bundle(tmp_path / name).folder)
    shutil.rmtree(tmp_path / "first")
    Bundle.open(make_bundle(tmp_path / "third").folder)
    records = [json.loads(path.read_text())["folder"] for path in (tmp_path / "cache" / "verified").iterdir()]
    assert sorted(records) == [str(tmp_path / name) for name in ("second", "third")]


def test_threads_and_processes_write_one_record(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is whole at every moment, whoever writes it, and nobody's temporary file is left."""
    monkeypatch.setenv("REDIPRUNE_CACHE", str(tmp_path / "cache"))
    code = (
        "import sys; from pathlib import Path; from rediprune.runtime.bundle import verified_files\n"
        "folder, record = Path(sys.argv[1]), verified_files.VerifiedFiles(Path(sys.argv[1]))\n"
        "for at in range(200):\n"
        "    record.note(f'{sys.argv[2]}/{at}', folder.stat(), 'sha'); record.save()\n"
    )
    record = VerifiedFiles(small)
    record.note("first", small.stat(), "sha")
    record.save()
    (path,) = (tmp_path / "cache" / "verified").iterdir()
    workers = [subprocess.Popen([sys.executable, "-c", code, str(small), who]) for who in "ab"]

    def note(at: int) -> None:
        record.note(f"thread/{at}", small.stat(), "sha")
        record.save()
        json.loads(path.read_text())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(note, range(200)))
    while any(worker.poll() is None for worker in workers):
        json.loads(path.read_text())
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all(record.knows(f"thread/{at}", small.stat(), "sha") for at in range(200))
    found = VerifiedFiles(small)
    assert found.knows("first", small.stat(), "sha")
    assert any(found.knows(f"{who}/199", small.stat(), "sha") for who in ("a", "b", "thread"))
    assert [left.name for left in path.parent.iterdir()] == [path.name]
