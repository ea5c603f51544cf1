"""The model card has the front matter that the hub reads, and is free to edit."""

import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import ModelCard
from rediprune.runtime.bundle import Bundle


def test_the_card_of_a_bundle(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))
    card = ModelCard.load(bundle / "README.md")
    assert card.data.library_name == "rediprune"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.base_model is None  # a local folder is no repository
    assert {"rediprune", "onnx", "llava"} <= set(card.data.tags or [])
    assert "rediprune run bundle" in card.text and str(tmp_path.parent) not in card.content
    (bundle / "README.md").write_text("mine")
    Bundle.open(bundle, remember=False)
