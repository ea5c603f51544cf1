"""A question's placeholders: where its pictures go, unless they are words."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.processor import LITERAL, Processor
from rediprune.runtime.pipeline import Pipeline
from rediprune.runtime.prompt import check_placeholders, render_prompt


@pytest.fixture(scope="module")
def processor_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], Processor]:
    return lambda name: Processor.load(checkpoint_of(name))


def counts(processor: Processor, prompt: object, images: int, videos: int) -> list[int]:
    ids = processor.encode(render_prompt(processor, prompt, images, videos))  # pyright: ignore[reportArgumentType]
    return [ids.count(index) for index in (processor.image_token_id, processor.video_token_id) if index is not None]


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "llava_next_video", "video_llava"])
def test_what_a_user_types_is_no_placeholder(processor_of: Callable[[str], Processor], family: str) -> None:
    processor = processor_of(family)
    both = [1, 0][: len(counts(processor, "Why?", 0, 0))]
    none = [0, 0][: len(both)]
    assert counts(processor, "What is an <image> tag? And <image>?", 0, 0) == none
    assert counts(processor, "What does the <video> tag say?", 1, 0) == both
    typed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is <image> a <video>?"}]}]
    assert counts(processor, typed, 1, 0) == both
    turns = [*typed, {"role": "assistant", "content": "<image>"}, {"role": "user", "content": "Really <image>?"}]
    assert counts(processor, turns, 1, 0) == both


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "llava_next_video", "video_llava"])
def test_words_keep_their_letters(processor_of: Callable[[str], Processor], family: str) -> None:
    processor = processor_of(family)
    ids = processor.encode(render_prompt(processor, "Is it <image> or <video>?", 0, 0))
    read = processor.tokenizer.decode(ids)
    assert "<image>" in read.replace(" ", "") and "<video>" in read.replace(" ", "") and LITERAL not in read


def test_one_placeholder_for_each_is_where_they_go(processor_of: Callable[[str], Processor]) -> None:
    processor = processor_of("video_llava")
    text = render_prompt(processor, "First <video> and then <image>?", 1, 1)
    assert text == "USER: First <video> and then <image>? ASSISTANT:"
    assert render_prompt(processor, "Then <image>?", 1, 1) == "USER: <video>\nThen <image>? ASSISTANT:"


def test_other_numbers_are_refused(processor_of: Callable[[str], Processor]) -> None:
    processor = processor_of("video_llava")
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    for prompt, images, videos in (("<image> <image>?", 1, 0), ("<image>?", 2, 0), (picture, 0, 0), (picture, 1, 1)):
        with pytest.raises(RedipruneError, match="placeholder"):
            render_prompt(processor, prompt, images, videos)


def test_a_raw_prompt_may_name_what_the_tokenizer_does_not_know(processor_of: Callable[[str], Processor]) -> None:
    check_placeholders(processor_of("llava"), "USER: <image>\nWhat does <video> mean? ASSISTANT:", 1, 0)
    with pytest.raises(RedipruneError, match="1 <video> placeholder and 0 videos"):
        check_placeholders(processor_of("video_llava"), "USER: <image>\nWhat does <video> mean? ASSISTANT:", 1, 0)


def test_the_picture_is_seen_all_the_same(bundle_of: Callable[[str], Path], photo: Path) -> None:
    answer = Pipeline.load(bundle_of("llava")).generate("What does the <video> tag say?", [photo], max_new_tokens=2)
    assert answer.visual_tokens == 64
    assert Pipeline.load(bundle_of("llava")).generate("What is an <image> tag?", max_new_tokens=2).visual_tokens == 0
