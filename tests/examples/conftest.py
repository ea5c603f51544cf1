"""The repository as the examples and the README's code meet it: a demo bundle in engines/, the picture in docs/."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with engines/demo-fp32, docs/demo/ and examples/, which is the current one."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo-fp32").symlink_to(demo_bundle)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "docs" / "demo").mkdir(parents=True)
    shutil.copyfile(ROOT / "docs" / "demo" / "scene.png", tmp_path / "docs" / "demo" / "scene.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
