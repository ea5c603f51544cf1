"""The examples and the code of README and quickstart run as they stand, on the trained checkpoint."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from ..docs.conftest import ROOT, code_blocks
from ..runtime.serving.conftest import running

pytestmark = pytest.mark.demo

SERVER = "http://127.0.0.1:8000"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an example as from a command line, in this process; what it prints."""

    def main(script: Path, *arguments: str) -> str:
        runpy.run_path(str(script))["main"](*arguments)
        return capsys.readouterr().out

    return main


def test_a_folder_of_pictures(clone: Path, run: Callable[..., str]) -> None:
    Image.new("RGB", (64, 64), "white").save(clone / "docs" / "demo" / "white.jpg")
    (clone / "docs" / "demo" / "broken.png").write_text("no picture")
    (clone / "docs" / "demo" / "notes.txt").write_text("not looked at")
    question = "What is above the orange triangle?"
    output = run(clone / "examples" / "folder_of_pictures.py", "engines/demo-fp32", "docs/demo", question)
    documents = {Path(d["picture"]).name: d for d in map(json.loads, output.splitlines())}
    assert sorted(documents) == ["broken.png", "scene.png", "white.jpg"]
    assert "is not a picture" in documents["broken.png"]["error"]
    assert documents["scene.png"]["answer"] == "purple cross" and documents["scene.png"]["kept"] == 29


def test_a_rule_of_ones_own(clone: Path, run: Callable[..., str]) -> None:
    lines = run(clone / "examples" / "custom_rule.py", "engines/demo-fp32", "docs/demo/scene.png").splitlines()
    assert lines[0].split() == ["ReDiPrune:", "purple", "cross"]
    assert lines[1].startswith("stands out: ")
    both = int(lines[2].split()[0])
    assert 0 < both < 29 and lines[2] == f"{both} of 29 kept tokens are the same"


def test_the_notebook_runs_and_is_committed_without_outputs(clone: Path) -> None:
    notebook = nbformat.read(clone / "examples" / "quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells if cell.outputs] == []
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(clone / "examples")}}).execute()
    shown = json.dumps([cell.outputs for cell in cells])
    assert "purple cross" in shown and "kept 29 of 196 visual tokens" in shown
    tokens = [int(kept) for kept in re.findall(r"(\d+) tokens, prefill", shown)]
    assert tokens == [196, 98, 29, 10]


@pytest.mark.parametrize("page", [pytest.param("README.md", marks=pytest.mark.smoke), "docs/quickstart.md"])
def test_python_of_a_page_runs(page: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page follow each other in one program; those about other bundles are left out."""
    blocks = [block.text for block in code_blocks(ROOT / page) if block.language == "python"]
    blocks = [text for text in blocks if "engines/llava" not in text and SERVER not in text]
    assert blocks
    exec("\n".join(blocks), {"__name__": "__main__"})
    assert "29" in capsys.readouterr().out or page == "docs/quickstart.md"


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_clients_of_a_page_get_their_answer(
    page: str, clone: Path, demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block that asks a server, with one on a free port."""
    blocks = [block.text for block in code_blocks(ROOT / page) if SERVER in block.text and block.language == "python"]
    assert blocks
    with running({"demo-fp32": demo_bundle}) as server:
        for text in blocks:
            exec(text.replace(SERVER, server.url), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == ["purple cross"] * len(blocks)
