"""Settings that cannot prepare a picture, and configs that are no model's, are refused before anything is exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle
from rediprune.runtime import RedipruneError


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "checkpoint"))


def edit(file: Path, part: str | None = None, **changes: Any) -> None:
    document = json.loads(file.read_text())
    (document if part is None else document[part]).update(changes)
    file.write_text(json.dumps(document))


def refuse(checkpoint: Path, word: str) -> None:
    with pytest.raises(RedipruneError, match=word) as error:
        export_bundle(Checkpoint.open(str(checkpoint)), checkpoint.parent / "bundle", check=False)
    assert "\n" not in str(error.value)
    assert not (checkpoint.parent / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"image_std": [1.0, 1.0]}, "settings cannot be used"),
        ({"image_std": [0.0, 1.0, 1.0]}, "pixels that are no numbers"),
        (
            {"crop_size": {"height": 42, "width": 42}},
            r"pictures of shape \[3, 42, 42\], but the vision tower takes \[3, ",
        ),
        ({"crop_size": {"height": 10**9, "width": 10**9}}, "whole numbers from 1 to 16384"),
        ({"size": {"shortest_edge": {}}}, "settings cannot be used|whole numbers from 1"),
        ({"rescale_factor": "x"}, "settings cannot be used"),
    ],
)
def test_settings_of_the_image_processor(checkpoint: Path, changes: dict[str, Any], word: str) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (file := checkpoint / name).is_file():
            edit(file, "image_processor" if "image_processor" in json.loads(file.read_text()) else None, **changes)
    refuse(checkpoint, word)


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("text_config", {"num_hidden_layers": 10**9}, "num_hidden_layers .* is 1000000000, which is no size"),
        ("text_config", {"hidden_size": -64}, "hidden_size .* is -64"),
        ("vision_config", {"image_size": True}, "image_size .* is True"),
        ("vision_config", {"hidden_act": "llama"}, "describes no model that transformers builds"),
        (None, {"text_config": "llama"}, "text_config of .* is no JSON object"),
        (None, {"vision_config": []}, "vision_config of .* is no JSON object"),
    ],
)
def test_a_config_that_is_no_models(checkpoint: Path, part: str | None, changes: dict[str, Any], word: str) -> None:
    edit(checkpoint / "config.json", part, **changes)
    refuse(checkpoint, word)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_of_a_hundred_thousand_brackets(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_text('{"model_type": ' + "[" * 100_000)
    refuse(checkpoint, "is damaged")
