"""Tiles of SmolVLM and Idefics3, and what stands around them in a prompt, are transformers'."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.runtime.media.processor import Processor
from rediprune.runtime.media.split_pictures import SplitPictures
from transformers import Idefics3ImageProcessorPil, SmolVLMImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string


@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)), longest=st.sampled_from([8, 24, 30]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_grids_are_transformers(size, longest):
    image = Image.new("RGB", size, (9, 8, 7))
    for kind in (SmolVLMImageProcessorPil, Idefics3ImageProcessorPil):
        made = kind(size={"longest_edge": longest}, max_image_size={"longest_edge": 8})
        found = made(image, return_row_col_info=True)
        assert SplitPictures(longest, 8).grid(image) == (found["rows"][0][0], found["cols"][0][0])


def test_a_picture_may_be_seen_whole_alone():
    assert SplitPictures(24, 8, splits=False).grid(Image.new("RGB", (50, 90))) == (0, 0)


@pytest.mark.parametrize("size", [(300, 90), (90, 300), (336, 336), (1, 1)])
@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_the_text_is_transformers(family, size, tmp_path):
    processor, image = Processor.load(make_checkpoint(tmp_path / "made", family)), Image.new("RGB", size)
    rows, columns = processor.split.grid(image)
    expected = get_image_prompt_string(rows, columns, 1, "<fake_token_around_image>", "<image>", "<global-img>")
    if family == "idefics3":
        other = object.__new__(Idefics3Processor)
        other.fake_image_token, other.image_token = "<fake_token_around_image>", "<image>"
        other.global_image_tag, other.image_seq_len = "<global-img>", 1
        assert Idefics3Processor.replace_image_token(other, {"rows": [[rows]], "cols": [[columns]]}, 0) == expected
    text, parts = processor.expand("User:<image>What?", [("image", [image])])
    assert text == f"User:{expected}What?" and parts == [rows * columns + 1]
    assert len(processor.pixel_values([image])) == parts[0]
    ids = processor.encode(text)
    assert ids.count(processor.image_token_id) == parts[0]
    assert all(
        processor.tokenizer.convert_tokens_to_ids(word) in ids
        for word in ("<global-img>", "<row_1_col_1>")[: 1 + bool(rows)]
    )
