"""Terminals of every kind: the answer alone on standard output, and no traceback whatever becomes of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = f"{sys.executable} -m rediprune.runtime"
pytestmark = pytest.mark.process
posix = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def ask(bundle_of: Callable[[str], Path], photo: Path) -> str:
    return f"{COMMAND} run {bundle_of('llava')} --image {photo} --prompt 'What is this?' --max-new-tokens 4"


@posix
@pytest.mark.parametrize("json_option", ["", "--json"])
@pytest.mark.parametrize("to", [pytest.param("> /dev/full", marks=pytest.mark.smoke), ">&-"])
def test_a_full_or_closed_output_is_one_line(ask: str, to: str, json_option: str) -> None:
    done = shell(f"{ask} {json_option} {to}")
    errors = [line for line in done.stderr.decode().splitlines() if not line.startswith("kept ")]
    assert done.returncode == 2
    assert len(errors) == 1 and errors[0].startswith("error: the output cannot be written")


@posix
def test_closed_errors_do_not_cost_the_answer(ask: str) -> None:
    done = shell(f"{ask} 2>&-")
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr


@posix
def test_a_reader_that_goes_away_is_no_failure(bundle_of: Callable[[str], Path]) -> None:
    done = shell(f"{COMMAND} inspect {bundle_of('llava')} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_any_encoding(bundle_of: Callable[[str], Path], encoding: str) -> None:
    done = shell(f"{COMMAND} inspect {bundle_of('llava')}", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and not done.stderr
    assert b"LLaVA-1.5" in done.stdout and b"\\u" not in done.stdout


def test_only_the_answer_goes_to_stdout_where_docstrings_are_stripped(ask: str) -> None:
    plain = shell(f"{ask} --json")
    done = shell(f"{ask} --json", PYTHONOPTIMIZE="2")
    assert done.returncode == 0
    assert json.loads(done.stdout)["token_ids"] == json.loads(plain.stdout)["token_ids"]


def test_the_tools_say_that_they_need_docstrings(bundle_of: Callable[[str], Path]) -> None:
    done = shell(f"{COMMAND} validate {bundle_of('llava')}", PYTHONOPTIMIZE="2")
    assert done.returncode == 2 and b"PYTHONOPTIMIZE" in done.stderr and not done.stdout


@pytest.mark.parametrize("columns", ["1", "20", "nonsense"])
@pytest.mark.parametrize("arguments", ["--help", "inspect"])
def test_narrow_columns(bundle_of: Callable[[str], Path], columns: str, arguments: str) -> None:
    words = arguments if arguments == "--help" else f"inspect {bundle_of('llava')}"
    done = shell(f"{COMMAND} {words}", COLUMNS=columns)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_limits_are_in_the_help_and_obeyed(ask: str) -> None:
    helped = shell(f"{COMMAND} run --help", COLUMNS="200").stdout.decode()
    assert "--limit" in helped and "video_seconds" in helped
    for done in (shell(f"{ask} --limit image_pixels=10"), shell(ask, REDIPRUNE_MEDIA_LIMITS="image_pixels=10")):
        assert done.returncode == 2 and b"pixels" in done.stderr and not done.stdout


def test_a_damaged_film_is_said(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.runtime.media.clips import make_video, packets_of

    path = make_video(tmp_path / "clip.avi", 6, codec="mjpeg")
    data = bytearray(path.read_bytes())
    at, size = packets_of(path)[3]
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    words = f"{COMMAND} run {bundle_of('video_llava')} --video {path} --frames 2 --prompt 'What?' --max-new-tokens 2"
    assert b"warning: " in shell(words).stderr
    assert "damaged" in json.loads(shell(f"{words} --json").stdout)["warnings"][0]
