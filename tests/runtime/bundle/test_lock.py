"""One process at a time holds a bundle, whatever happens to the others; shown with real processes."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.bundle.lock import changing, making

HOLD = """
import sys, time
from pathlib import Path
from rediprune.runtime.bundle.lock import making
with making(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
# Takes the lock again and again; in it, makes a file that nobody else may have made, and removes it.
CONTEND = """
import os, sys, time
from pathlib import Path
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle.lock import making
place, ends, taken = Path(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < ends:
    try:
        with making(place / "bundle"):
            os.close(os.open(place / "inside", os.O_CREAT | os.O_EXCL))
            os.unlink(place / "inside")
            taken += 1
    except RedipruneError as error:
        assert "another process is making" in str(error)
print(taken)
"""
NOTE = """
import sys
from rediprune.runtime.bundle.lock import changing
for _ in range(20):
    with changing(sys.argv[1], wait=60) as bundle:
        made = bundle.manifest.source
        bundle.manifest.source = made.model_copy(update={"weights": made.weights | {f"{sys.argv[2]}{len(made.weights)}": "0"}})
        bundle.write_manifest()
"""


def process(code: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def small(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "small").folder


def test_a_killed_process_lets_go(small: Path) -> None:
    holder = process(HOLD, small)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    for held in (making(small), changing(small), changing(small, wait=0.1)):
        with pytest.raises(RedipruneError, match=r"another process is making or changing .*small'; wait"), held:
            pytest.fail("two hold it")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with changing(small) as bundle:
        assert bundle.folder == small


def test_two_processes_never_both_hold_it(tmp_path: Path) -> None:
    """Nor where one waits with the lock file open while the other lets go of it."""
    workers = [process(CONTEND, tmp_path, 2) for _ in range(3)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    assert all(int(output) > 0 for output, _ in outputs)


def test_threads_of_one_process_never_both_hold_it(tmp_path: Path) -> None:
    inside, taken = threading.Lock(), []

    def work() -> None:
        for _ in range(50):
            try:
                with making(tmp_path / "bundle"):
                    assert inside.acquire(blocking=False)
                    inside.release()
                    taken.append(1)
            except RedipruneError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken


def test_no_writer_takes_back_what_another_wrote(small: Path) -> None:
    writers = [process(NOTE, small, who) for who in "ab"]
    outputs = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    assert len(Bundle.open(small).manifest.source.weights) == 40


def test_a_bundle_has_one_lock_under_all_its_names(small: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(small)
    for name in (tmp_path / "link", small.parent / "." / "elsewhere" / ".." / "small"):
        with making(small), pytest.raises(RedipruneError, match="another process"), changing(name):
            pytest.fail("two hold it")


def test_whoever_waits_gets_it(small: Path) -> None:
    holder = process(HOLD, small)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    threading.Timer(0.5, holder.kill).start()
    with changing(small, wait=30):
        pass
    holder.wait()


def test_lock_and_leftovers_lie_beside_the_bundle(small: Path) -> None:
    before = sorted(small.rglob("*"))
    with changing(small) as bundle:
        bundle.write_manifest()
    assert sorted(small.rglob("*")) == before
    assert sorted(path.name for path in small.parent.iterdir()) == [".small.lock", "small"]


def test_what_is_no_bundle_gets_no_lock(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", tmp_path / "no" / "where", tmp_path):
        with pytest.raises(RedipruneError, match="is not a bundle"), changing(place):
            pytest.fail("opened")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place", ["/proc/bundle", "/sys/bundle", "/dev/null/bundle", "/proc/self/task/x/y", "/proc/sys/kernel/bundle"]
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="file systems of Linux")
def test_a_virtual_file_system_is_refused(place: str) -> None:
    with (
        pytest.raises(RedipruneError, match=r"cannot be written to \(.*\); choose another folder") as error,
        making(Path(place)),
    ):
        pytest.fail("made")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_file_system_is_refused(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "tmp1"))

    monkeypatch.setattr("rediprune.runtime.bundle.lock.tempfile.TemporaryFile", closed)
    with pytest.raises(RedipruneError, match=f"cannot be written to .{os.strerror(code)}"), making(tmp_path / "bundle"):
        pytest.fail("made")


@pytest.mark.parametrize(
    "name, says",
    [
        ("bundle/onnx/a.onnx", r"cannot be written to \(Permission denied\); choose another folder"),
        (".bundle.partial/onnx", r"cannot be written to \(Permission denied\); choose another folder"),
        ("checkpoint/model.safetensors", r"no permission for '.*checkpoint/model\.safetensors' \(Permission denied\)"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_taken_for_the_output(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match=says) as error, making(tmp_path / "bundle"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))
    assert ("cannot be written" in str(error.value)) == ("checkpoint" not in name)


def test_errors_that_are_faults_of_the_tool_stay_what_they_are(tmp_path: Path) -> None:
    for fault in (FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "bundle")), OSError("?")):
        with pytest.raises(OSError) as error, making(tmp_path / "bundle"):
            raise fault
        assert error.value is fault
    with pytest.raises(RedipruneError, match="is full"), making(tmp_path / "bundle"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), making(tmp_path / "bundle"):
            raise KeyboardInterrupt
    began = time.monotonic()
    with making(tmp_path / "bundle"):
        assert time.monotonic() - began < 10
