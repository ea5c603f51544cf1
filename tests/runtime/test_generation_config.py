"""What an answer is generated with where a checkpoint says it in one file, in the other, or in none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.generation_config import read_generation_config
from rediprune.runtime.media.processor import Processor
from transformers import AutoConfig, GenerationConfig


@pytest.fixture
def folder(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint's config without its generation config."""
    (tmp_path / "config.json").write_bytes((checkpoint_of("llava") / "config.json").read_bytes())
    return tmp_path


def change(folder: Path, **text: object) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document.pop("eos_token_id", None)
    document["text_config"] |= text
    path.write_text(json.dumps(document))


def test_the_generation_config_counts_where_there_is_one(folder: Path) -> None:
    change(folder, eos_token_id=836)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert read_generation_config(folder) == {"eos_token_id": [1, 2]}


@pytest.mark.parametrize("eos", [836, [836, 2]])
def test_else_the_models_config(folder: Path, eos: object) -> None:
    change(folder, eos_token_id=eos)
    read = read_generation_config(folder)
    expected = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    assert read["eos_token_id"] == expected.eos_token_id == eos


def test_else_the_defaults_of_its_class(folder: Path) -> None:
    change(folder)
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document["text_config"].pop("eos_token_id", None)
    path.write_text(json.dumps(document))
    expected = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    assert read_generation_config(folder).get("eos_token_id") == expected.eos_token_id


def test_neither(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_damaged_file(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(RedipruneError, match=r"generation_config\.json .*copy it anew"):
        read_generation_config(folder)


def test_a_setting_of_another_form_is_refused_at_the_load(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "checkpoint"))
    (folder / "generation_config.json").write_text('{"suppress_tokens": "all"}')
    with pytest.raises(
        RedipruneError, match=r"suppress_tokens in .*generation_config.json must be a list of token ids"
    ):
        Processor.load(folder)
