"""`optimum-cli export rediprune`, found by optimum in the namespace that it looks through."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optimum.commands.optimum_cli", reason="needs optimum: pip install 'rediprune[optimum]'")


def test_the_command_is_found_and_its_options_are_passed_on(tmp_path: Path) -> None:
    cli = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "rediprune"]
    command = [*cli, "-m", str(tmp_path / "nowhere"), str(tmp_path / "bundle"), "--precision", "fp16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is neither a local folder nor a hub repository" in " ".join(done.stderr.split())
