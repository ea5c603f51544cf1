"""What the integrations import of this project is there: they run in environments of their own, where no other test sees it."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "integrations"
FILES = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
SOURCES = sorted(path.as_posix() for path in FILES if "build" not in path.parts)  # where pip built the plug-in


def test_there_are_integrations() -> None:
    assert {"vlmevalkit.py", "lmms_eval/rediprune_lmms_eval/model.py"} <= set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_names_of_the_project_are_there(source: str) -> None:
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rediprune":
            module = import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{source}, line {node.lineno}"
