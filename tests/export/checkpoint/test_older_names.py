"""Copies of checkpoints with the names that older transformers wrote."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rediprune.export.checkpoint.older_names import copy_with_older_names, older_name
from safetensors.torch import load_file


def test_names_of_the_tower_get_their_old_form() -> None:
    assert older_name("vision_tower.encoder.0.weight") == "vision_tower.vision_model.encoder.0.weight"
    assert older_name("model.vision_tower.embeddings.x") == "model.vision_tower.vision_model.embeddings.x"
    for name in ("vision_tower.vision_model.encoder.0.weight", "model.language_model.norm.weight"):
        assert older_name(name) == name


def test_a_copy_has_the_same_weights(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    source, target = checkpoint_of("llava"), tmp_path / "copy"
    renamed = copy_with_older_names(source, target)
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert renamed > 10 and {older_name(name) for name in before} == set(after)
    assert all(torch.equal(tensor, after[older_name(name)]) for name, tensor in before.items())
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_several_files_of_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit, match="0 files"):
        copy_with_older_names(tmp_path / "in", tmp_path / "out")
