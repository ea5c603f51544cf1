"""The command line, as a process and in this one."""

import logging
import os
import subprocess
import sys
from typing import Protocol

import pytest
from rediprune.runtime.__main__ import main

COMMAND = [sys.executable, "-m", "rediprune.runtime"]

Done = subprocess.CompletedProcess[str]


class CommandLine(Protocol):
    """Runs `rediprune` with the arguments given, which must leave with `code` and without a traceback."""

    def __call__(self, *arguments: object, code: int = 0) -> Done: ...


def run_process(*arguments: object, code: int = 0) -> Done:
    """Run `rediprune` as a process: seconds of start-up each."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    return checked(done, code)


def runs_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """`rediprune` in this process, through the same entry point."""

    def run(*arguments: object, code: int = 0) -> Done:
        words = ["rediprune", *map(str, arguments)]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            for name in ("rediprune", "uvicorn", "uvicorn.error"):
                # A server in an earlier test of this process logs to a stderr that is closed by now.
                patch.setattr(logging.getLogger(name), "handlers", [])
                patch.setattr(logging.getLogger(name), "propagate", True)
            with pytest.raises(SystemExit) as leaving:
                main()
        output = capsys.readouterr()
        return checked(subprocess.CompletedProcess(words, leaving.value.code or 0, output.out, output.err), code)

    return run


def checked(done: Done, code: int) -> Done:
    """What a command left, if it is what was expected."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done
