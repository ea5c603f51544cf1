"""The walk-throughs of docs/ are followed to the letter: files written, lines changed, commands run."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ROOT, CodeBlock

PACKAGES = ("graphs", "runtime", "calibration", "export")


class Walkthrough:
    """A copy of the packages that a page's steps change, and a folder in which its commands run."""

    def __init__(self, folder: Path):
        self.sources = folder / "sources"
        self.work = folder / "work"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        for package, source in project["tool"]["setuptools"]["package-dir"].items():
            target = self.sources.joinpath(*package.split("."))
            target.mkdir(parents=True, exist_ok=True)
            for file in (ROOT / source).glob("*.py"):
                shutil.copyfile(file, target / file.name)
        self.work.mkdir()
        shutil.copyfile(ROOT / "docs/demo/scene.png", self.work / "scene.png")

    def place(self, title: str) -> Path:
        return (self.sources / "rediprune" if title.split("/")[0] in PACKAGES else self.work) / title

    def change(self, title: str, diff: str) -> None:
        """Put the lines with + where those with − stand, which must be there once."""
        old = "".join(line[1:] for line in diff.splitlines(keepends=True) if line.startswith("-"))
        new = "".join(line[1:] for line in diff.splitlines(keepends=True) if line.startswith("+"))
        text = self.place(title).read_text()
        assert text.count(old) == 1, f"{title} has {old!r} {text.count(old)} times"
        self.place(title).write_text(text.replace(old, new))

    def run(self, command: str) -> str:
        program, _, rest = command.partition(" ")
        program = {"rediprune": f"{sys.executable} -m rediprune", "python": sys.executable}[program]
        done = subprocess.run(
            f"{program} {rest}",
            shell=True,
            cwd=self.work,
            env=os.environ | {"PYTHONPATH": str(self.sources)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/add-a-family.md", "docs/add-a-backend.md"])
def test_a_walkthrough_works(page: str, page_blocks: Callable[[str], list[CodeBlock]], tmp_path: Path) -> None:
    walkthrough = Walkthrough(tmp_path)
    blocks = page_blocks(page)
    for block in blocks:  # the files first: a command may stand before the script that it runs
        if block.language == "python":
            walkthrough.place(block.title).write_text(block.text)
        elif block.language == "diff":
            walkthrough.change(block.title, block.text)
    output = "".join(
        walkthrough.run(line.removeprefix("$ "))
        for block in blocks
        if block.language == "console"
        for line in block.text.splitlines()
    )
    shown = [line for block in blocks if block.language == "text" for line in block.text.splitlines()]
    assert [line for line in shown if line not in output] == []
