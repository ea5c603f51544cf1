"""Ids of a prompt are held against what the model has embeddings for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.options import SelectOptions


@pytest.fixture
def pipeline(bundle_of: Callable[[str], Path]) -> Pipeline:
    """A bundle whose tokenizer knows two tokens that the model does not: fine-tunes add such."""
    pipeline = Pipeline.load(bundle_of("llava"), lazy=True)
    tokenizer = pipeline.processor.tokenizer
    rows = pipeline.bundle.manifest.decoder.vocabulary
    tokenizer.add_tokens([f"<t{number}>" for number in range(len(tokenizer), rows + 2)])
    assert len(tokenizer) == rows + 2
    return pipeline


def test_the_last_row_is_taken(pipeline: Pipeline, photo: Path) -> None:
    last = pipeline.bundle.manifest.decoder.vocabulary - 1
    assert pipeline.generate(f"Use <t{last}> please", images=[photo], max_new_tokens=1).token_ids


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_token_beyond_the_embeddings_is_named(pipeline: Pipeline, photo: Path, beyond: int) -> None:
    """multimodal_injection#4; in a chat and without, in what is asked and in what steers the selection."""
    token = pipeline.bundle.manifest.decoder.vocabulary + beyond
    asked = f"Use <t{token}> please"
    word = (
        rf"'<t{token}>', token {token} of the tokenizer, but the model has embeddings for {token - beyond} tokens only"
    )
    with pytest.raises(RedipruneError, match=word):
        pipeline.generate(asked, images=[photo])
    with pytest.raises(RedipruneError, match=word):
        pipeline.generate(asked, chat=False)
    with pytest.raises(RedipruneError, match=word):
        pipeline.select(asked, [photo], selection=SelectOptions(keep=0.5))
    with pytest.raises(RedipruneError, match=word):
        pipeline.prepare("What?", [photo], question=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}])  # fmt: skip
