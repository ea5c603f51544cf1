"""What is no file is refused at once, and nothing endless is read."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.files import open_media, read_media
from rediprune.runtime.media.images import load_image
from rediprune.runtime.media.video import load_video

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
LOADERS = [load_image, lambda path: load_video(path, 2)]


@posix
@pytest.mark.timeout(20)
@pytest.mark.parametrize("load", LOADERS, ids=["image", "video"])
@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/null", "/dev/full", "pipe", "socket", "folder", "link to pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, load, kind: str) -> None:
    path = tmp_path / "media"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "socket":
        os.chdir(tmp_path)
        socket.socket(socket.AF_UNIX).bind("media")
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path(kind)
    named = "device" if kind.startswith("/dev") else kind.removeprefix("link to ")
    with pytest.raises(RedipruneError, match=f"cannot be read: there is no file there, but a {named}"):
        load(path)


@posix
@pytest.mark.parametrize("load", LOADERS, ids=["image", "video"])
def test_bad_paths_are_refused(tmp_path: Path, load) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for path, word in (("a\0b", "no path"), (tmp_path / "loop", "cannot be read"), (tmp_path / "gone", "no file")):
        with pytest.raises(RedipruneError, match=word):
            load(path)
    with pytest.raises(RedipruneError, match="cannot be read"):
        load("x" * 5000)


@posix
def test_files_that_hide_their_size_are_read_up_to_the_limit() -> None:
    assert read_media("/proc/self/status", 100_000).startswith(b"Name:")
    with pytest.raises(RedipruneError, match="at most"):
        read_media("/proc/self/status", 50)


def test_a_file_may_have_just_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_media(tmp_path / "a", 5) == b"12345"
    with pytest.raises(RedipruneError, match="MB are read"):
        read_media(tmp_path / "a", 4)
    with pytest.raises(RedipruneError, match="MB are read"):
        open_media(tmp_path / "a", 4)


@posix
def test_an_endless_file_takes_no_memory() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from rediprune.runtime.media.images import load_image\n"
        "try: load_image('/dev/zero')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "a device" in done.stdout, done.stderr
