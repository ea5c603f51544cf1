"""Documented modules that moved answer to their old names."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from rediprune.renamed import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_module_at_its_new_place(old: str, new: str) -> None:
    for name in [name for name in sys.modules if name.startswith(old)]:  # imported by another test: warn again
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: import {new} instead"):
        moved = import_module(old)
    assert moved is import_module(new)
    assert moved.__name__ == new
    assert moved.__spec__ is not None and moved.__spec__.name == new


def test_no_old_name_hides_a_module_that_exists() -> None:
    """The finder is asked first: an entry for a name that is in use would take its place."""
    for old in MOVED:
        parent, _, name = old.rpartition(".")
        if parent in MOVED:
            continue
        package = import_module(parent)
        folder = Path(next(iter(package.__path__)))
        assert not (folder / name).exists() and not (folder / f"{name}.py").exists(), old


def test_from_import_gives_the_same_objects() -> None:
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("rediprune.graphs.keep", None)
        from rediprune.graphs.keep import num_kept  # pyright: ignore[reportMissingImports]
    from rediprune.graphs.selection.counts import num_kept as at_its_new_place

    assert num_kept is at_its_new_place


@pytest.mark.process
def test_a_moved_program_runs_under_its_old_name() -> None:
    command = [sys.executable, "-W", "default", "-m", "rediprune.graphs.plugin.gpu_check", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage: gpu_check.py" in done.stdout
    assert "rediprune.graphs.plugin.gpu_check has moved" in done.stderr


def test_a_name_that_never_was_is_still_an_import_error() -> None:
    assert find_spec("rediprune.runtime.abacus") is None
    with pytest.raises(ModuleNotFoundError):
        import_module("rediprune.graphs.plugin.abacus")
