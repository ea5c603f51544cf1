"""What families write around images and videos is what transformers' processors write."""

import numpy as np
import pytest
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.runtime.media.expansion import expansion_of
from rediprune.runtime.media.processor import LITERAL, Processor
from rediprune.runtime.prompt import encode_text, media_order, prompt_ids, prompt_text
from transformers import AutoTokenizer, InternVLProcessor

FRAMES = [Image.new("RGB", (40, 30), (shade, 9, 9)) for shade in range(3)]


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("made") / "internvl", "internvl")


def test_most_families_have_one_placeholder():
    expand = expansion_of("llava_next_video", "<image>", "<video>")
    assert (expand("image", FRAMES[:1]), expand("video", FRAMES)) == ("<image>", "<video>")


def test_internvl_writes_what_its_processor_writes(internvl):
    """Placeholders aside, of which transformers writes one for each token."""
    theirs = object.__new__(InternVLProcessor)  # it cannot be made without torchvision
    tokenizer = AutoTokenizer.from_pretrained(internvl)
    theirs.image_token, theirs.image_seq_length = tokenizer.context_image_token, 1
    theirs.start_image_token, theirs.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
    processor = Processor.load(internvl)
    assert processor.image_token == theirs.image_token == "<IMG_CONTEXT>"
    assert processor.expansion("image", FRAMES[:1]) == theirs.replace_image_token({"num_patches": [1]}, 0)
    video = {"pixel_values_videos": [np.zeros((3, 1))]}
    assert processor.expansion("video", FRAMES) == theirs.replace_video_token(video, 0)
    assert processor.expansion("video", FRAMES).count(theirs.image_token) == 3


def test_prompts_are_expanded_in_the_order_of_their_media(internvl):
    processor = Processor.load(internvl)
    asked = [
        {
            "role": "user",
            "content": [
                {"type": "video"},
                {"type": "text", "text": "and <video>, <IMG_CONTEXT>"},  # words, as there are parts for all media
                {"type": "image"},
                {"type": "text", "text": "Alike?"},
            ],
        }
    ]
    text = prompt_text(processor, asked, 1, 1, True)
    assert media_order(processor, text, 1, 1) == ["image", "video"]  # as the template has them
    expanded, parts = processor.expand(text, [("image", FRAMES[:1]), ("video", FRAMES)])
    assert parts == [1, 3]
    assert "<img><IMG_CONTEXT></img>\nFrame1: <img>" in expanded
    assert f"<{LITERAL}video>, <{LITERAL}IMG_CONTEXT>" in expanded
    ids = encode_text(processor, expanded)
    token = processor.image_token_id
    assert ids.count(token) == 4 and processor.video_token_id not in ids
    behind = ids[len(ids) - ids[::-1].index(token) :]
    assert prompt_ids(processor, asked, 1, 1)[-len(behind) :] == behind


def test_the_ids_are_those_of_the_processors_text(internvl):
    """Tokens around a placeholder are those of the whole text, as where transformers repeats it."""
    processor = Processor.load(internvl)
    text = processor.render([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}])
    ours = encode_text(processor, processor.expand(text, [("video", FRAMES)])[0])
    theirs = AutoTokenizer.from_pretrained(internvl).encode(
        text.replace("<video>", "\n".join(f"Frame{n}: <img>{'<IMG_CONTEXT>' * 16}</img>" for n in (1, 2, 3)))
    )
    spread = [token for one in ours for token in [one] * (16 if one == processor.image_token_id else 1)]
    assert spread == theirs
