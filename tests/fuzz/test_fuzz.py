"""Mutated inputs end with exit code 0 or 2: some here, a thousand with the script (`python -m tests.fuzz`)."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .__main__ import run_one
from .inputs import KINDS

pytestmark = pytest.mark.family


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of("video_llava")


@pytest.mark.parametrize("number", [*range(18), *(pytest.param(n, marks=pytest.mark.slow) for n in range(18, 48))])
def test_a_bad_input_is_no_fault_of_the_tool(
    number: int, checkpoint_of: Callable[[str], Path], bundle: Path, tmp_path: Path
) -> None:
    code, said = run_one(3, number, list(KINDS), checkpoint_of("video_llava"), bundle, tmp_path)
    assert code in (0, 2), said


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_is_that_of_its_number(
    kind: str, checkpoint_of: Callable[[str], Path], bundle: Path, tmp_path: Path
) -> None:
    def made(folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        run_one(5, 1, [kind], checkpoint_of("video_llava"), bundle, folder)
        files = [file for file in folder.rglob("*") if file.is_file() and "onnx" not in file.parts]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    first = made(tmp_path / "first")
    assert first and first == made(tmp_path / "second")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred() -> None:
    """`python -m tests.fuzz` takes a thousand, in a quarter of an hour."""
    words = [sys.executable, "-m", "tests.fuzz", "--seed", "1", "--count", "100"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout
