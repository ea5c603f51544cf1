"""Tiny checkpoints and their bundles, made once per run; everything below is real but small."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle

torch.set_num_threads(2)

MEDIA = Path(__file__).parent / "media"

# Every family, tower, decoder and precision at least once.
BUNDLES = {
    "llava": ("llava", "clip", "llama", "fp32"),
    "llava_siglip": ("llava", "siglip", "qwen2", "fp32"),
    "llava_next_video": ("llava_next_video", "clip", "qwen2", "fp32"),
    "video_llava": ("video_llava", "clip", "llama", "fp32"),
    "llava_fp16": ("llava", "clip", "llama", "fp16"),
    "llava_copy": ("llava", "clip", "llama", "fp32"),  # weights copied; all others refer to the checkpoint's files
}


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny checkpoint, by its name in `BUNDLES`."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        family, tower, decoder, _ = BUNDLES[name]
        folder = root / f"{family}-{tower}-{decoder}"
        return folder if folder.exists() else make_checkpoint(folder, family, tower, decoder)

    return make


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """Folder of a tiny bundle, by its name in `BUNDLES`. Tests must not change it."""
    root = tmp_path_factory.mktemp("bundles")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            export_bundle(
                Checkpoint.open(str(checkpoint_of(name))), folder, BUNDLES[name][3], copy=name == "llava_copy"
            )
        return folder

    return make


@pytest.fixture(scope="session")
def photo() -> Path:
    return MEDIA / "astronaut.jpg"


@pytest.fixture(scope="session")
def cat() -> Path:
    return MEDIA / "chelsea.jpg"


@pytest.fixture(scope="session")
def clip() -> Path:
    return MEDIA / "clip.mp4"
