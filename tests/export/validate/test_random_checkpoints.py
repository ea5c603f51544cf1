"""Families over many random checkpoints and questions: answers equal eager PyTorch's, token for token.

At keep 1 the reference is transformers' own `generate` on pixels; pruned, it is `select_tokens` by hand. Graphs do not
depend on the weights, so that each kind of checkpoint is traced once.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle
from rediprune.export.validate.eager_reference import Request
from rediprune.export.validate.references import reference_for
from rediprune.export.validate.sample_media import sample_clip
from rediprune.runtime import Pipeline
from rediprune.runtime.backends.eager_torch import eager_model

SEEDS = int(os.environ.get("REDIPRUNE_SEEDS", "3"))  # 20 for docs/status.md: some minutes on two cores
KINDS = [
    ("llava", "clip", "mistral"),
    ("llava", "siglip", "qwen3"),
    ("llava_next", "clip", "mistral"),
    ("llava_next", "siglip", "qwen3"),
    ("llava_next", "clip", "llama"),
    ("llava_onevision", "siglip", "qwen2"),
    ("internvl", "intern", "qwen2"),
    ("internvl", "intern", "qwen3"),
    ("smolvlm", "smolvlm", "llama"),
    ("idefics3", "smolvlm", "llama"),
    ("qwen2_vl", "qwen", "qwen2"),
    ("qwen2_5_vl", "qwen", "qwen2"),
    ("qwen3_vl", "qwen", "qwen3"),
]
SIZES = [(97, 61), (31, 400), (3, 5), (256, 256), (640, 427), (1, 1)]  # of pictures, odd ones too
QUESTIONS = ("What is in this picture?", "How many are there, and where?", "Describe it, please.")


def pictures(seed: int) -> list[Image.Image]:
    """One or two pictures of odd sizes."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(1 + seed % 2):
        width, height = SIZES[(seed + 3 * number) % len(SIZES)]
        coarse = Image.fromarray(random.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        found.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tower", "decoder"), KINDS)
def test_answers_equal_eager(family: str, tower: str, decoder: str, tmp_path: Path) -> None:
    answers = set()
    for seed in range(SEEDS):
        checkpoint = make_checkpoint(tmp_path / f"checkpoint-{seed}", family, tower, decoder, seed=seed)
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / f"bundle-{seed}", check=False)
        pipeline = Pipeline.load(tmp_path / f"bundle-{seed}")
        reference = reference_for(eager_model(pipeline.bundle), pipeline.processor)
        videos = [sample_clip()] if seed % 3 == 2 and "video" in pipeline.bundle.manifest.modalities else []
        images = [] if videos and seed % 2 else pictures(seed)
        several = pipeline.bundle.manifest.position_axes > 1  # which kept tokens keep in any case
        asked = [(1.0, "compact"), (0.5, "compact"), (0.5, "original"), (0.15, "original"), (1, "compact")]
        for number, (keep, positions) in enumerate((keep, "original" if several else kind) for keep, kind in asked):
            # Of a large picture's tiles, which OneVision scales down behind the projector, none can be dropped.
            tiles = family != "llava_onevision" or len(images) != 1 or min(images[0].size) < 200
            options = {"keep": keep, "positions": positions, "frames": 3, "max_new_tokens": 12, "prune_tiles": tiles}
            question = QUESTIONS[(seed + number) % len(QUESTIONS)]
            expected = reference.answer(Request(question, images, videos, **options))
            answer = pipeline.generate(question, images, videos, temperature=0.0, **options)
            case = (seed, keep, positions)
            assert answer.token_ids == expected.token_ids, case
            assert all(np.array_equal(a, b) for a, b in zip(answer.kept, expected.kept, strict=bool(expected.kept))), (
                case
            )
            answers.add(tuple(answer.token_ids))
    assert len(answers) > 2 * SEEDS  # a model that says the same whatever it is shown proves nothing
