"""A checkpoint's own code is never run, and nobody is asked whether it may be."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.runtime import RedipruneError

_CODE = """
from pathlib import Path
Path(__file__).with_name("was-run").touch()
from transformers import LlavaConfig as OwnConfig, LlavaForConditionalGeneration as OwnModel
"""
_AUTO_MAP = {"AutoConfig": "own_code.OwnConfig", "AutoModelForImageTextToText": "own_code.OwnModel"}


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "checkpoint"))
    (folder / "own_code.py").write_text(_CODE)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("model_type", ["llava", "no_such_model"])
def test_a_checkpoint_with_code_of_its_own_is_refused(
    model_type: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    edit_config(checkpoint, model_type=model_type, auto_map=_AUTO_MAP)
    with pytest.raises(RedipruneError, match=r"code of its own \(auto_map in config.json\).*remove auto_map") as error:
        Checkpoint.open(str(checkpoint))
    assert str(checkpoint) in str(error.value) and "\n" not in str(error.value)
    assert not (checkpoint / "was-run").exists()


@pytest.mark.process
def test_in_the_command_it_is_exit_code_2_whatever_stdin_says(checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, model_type="no_such_model", auto_map=_AUTO_MAP)
    command = [sys.executable, "-m", "rediprune.runtime", "export", str(checkpoint), "-o", str(tmp_path / "bundle")]
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "auto_map" in done.stderr
    assert "Do you wish to run" not in done.stdout + done.stderr
    assert not (checkpoint / "was-run").exists() and not (tmp_path / "bundle").exists()


def test_once_the_map_is_removed_transformers_own_class_serves(checkpoint: Path) -> None:
    model = Checkpoint.open(str(checkpoint)).skeleton("fp32").model
    assert type(model).__module__.startswith("transformers.models.llava")
    assert not (checkpoint / "was-run").exists()
