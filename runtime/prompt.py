"""The prompt: what the user asked, with one placeholder per image or video, in the checkpoint's chat form."""

import re
from collections.abc import Mapping, Sequence
from threading import Lock

from PIL import Image

from .chat_template import Message, check_messages
from .errors import RedipruneError
from .media.processor import LITERAL, Processor

Prompt = str | Sequence[Message]

_ENCODING = Lock()  # a call sets the tokenizer for itself (special tokens, truncation), and for whoever calls meanwhile


def prompt_text(processor: Processor, prompt: Prompt, images: int, videos: int, chat: bool) -> str:
    """Text of a prompt, one placeholder for each image or video.

    Args:
        processor: the bundle's.
        prompt: as `render_prompt` takes it.
        images, videos: how many of each there are.
        chat: put it into the checkpoint's chat form; False takes a text as it is.

    Raises:
        RedipruneError: an empty prompt, or placeholders that are not as many as the images and videos.
    """
    if chat:
        return render_prompt(processor, prompt, images, videos)
    if isinstance(prompt, str):
        check_placeholders(processor, prompt, images, videos)
        return prompt
    raise RedipruneError("chat=False takes the prompt as one text, not as messages")


def media_order(processor: Processor, text: str, images: int, videos: int) -> list[str]:
    """Kinds of the media in the order of their placeholders in a text of `prompt_text`."""
    kinds = {processor.placeholders[kind]: kind for kind, given in (("image", images), ("video", videos)) if given}
    pattern = "|".join(map(re.escape, kinds)) or r"(?!)"
    return [kinds[token] for token in re.findall(pattern, text)]


def encode_text(processor: Processor, text: str) -> list[int]:
    """Token ids [S] of a text whose placeholders are expanded.

    Raises:
        RedipruneError: it is empty.
    """
    with _ENCODING:
        ids = processor.encode(text)
    if not ids:
        raise RedipruneError("the prompt is empty; ask a question")
    return ids


def prompt_ids(processor: Processor, prompt: Prompt, images: int, videos: int, chat: bool = True) -> list[int]:
    """Token ids [S] of a prompt whose images and videos have one frame each: what is behind them does not depend on it.

    Takes and raises what `prompt_text` does.
    """
    text = prompt_text(processor, prompt, images, videos, chat)
    media = [(kind, [Image.new("RGB", (1, 1))]) for kind in media_order(processor, text, images, videos)]
    return encode_text(processor, processor.expand(text, media)[0])


def render_prompt(processor: Processor, prompt: Prompt, images: int, videos: int) -> str:
    """Text of a prompt.

    Args:
        processor: the bundle's.
        prompt: a question, or the messages of a dialogue in transformers' form (content a text, or parts of type
            "text", "image" and "video"). A question that holds one placeholder for each image or video keeps them where
            they are; otherwise the images and videos come first. Where no image was given, or the dialogue has parts
            for all of them, an `<image>` in a text is a word like any other; likewise `<video>`. A text that is already
            in the checkpoint's chat form may be given with `chat=False` to `Pipeline.generate`.
        images, videos: how many of each there are.

    Returns:
        Text for `Processor.encode`; placeholders that are mere words carry `LITERAL`.

    Raises:
        RedipruneError: an empty prompt, or placeholders that are not as many as the images and videos.
    """
    messages = question(processor, prompt, images, videos) if isinstance(prompt, str) else list(prompt)
    if not messages or (isinstance(prompt, str) and not prompt.strip()):
        raise RedipruneError("the prompt is empty; ask a question")
    check_messages(messages)
    for kind, given in (("image", images), ("video", videos)):
        if given == sum(part["type"] == kind for message in messages for part in _parts(message)):
            token = processor.placeholders[kind]
            messages = [_replaced(message, token, token[:1] + LITERAL + token[1:]) for message in messages]
    text = processor.render(messages)
    check_placeholders(processor, text, images, videos)
    return text


def question(processor: Processor, text: str, images: int, videos: int) -> list[Message]:
    """A question as the one message of a dialogue."""
    media = []
    for kind, given in (("image", images), ("video", videos)):
        if processor.placeholders[kind] not in text:
            media += [{"type": kind}] * given
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def check_placeholders(processor: Processor, text: str, images: int, videos: int) -> None:
    """Refuse a text whose placeholders are not as many as the images and videos."""
    for kind, index, given in (
        ("image", processor.image_token_id, images),
        ("video", processor.video_token_id, videos),
    ):
        token = processor.placeholders[kind]
        found = text.count(token) if given or index is not None else 0  # no placeholder where the tokenizer has none
        if found != given:
            raise RedipruneError(
                f"the prompt has {found} {token} placeholder{'s' * (found != 1)} and {given} {kind}"
                f"{'s were' if given != 1 else ' was'} given; give one for each"
            )


def check_placeholder_ids(processor: Processor, expected: Mapping[str, int]) -> None:
    """Refuse a checkpoint or bundle whose tokenizer does not make the placeholder of its config of the placeholder's text.

    A picture would not be seen: its placeholder would be a word, and a word its placeholder.

    Args:
        processor: the tokenizer.
        expected: by kind the token id that the config says.

    Raises:
        RedipruneError: names both ids, or says that the tokenizer splits the placeholder.
    """
    for kind, index in expected.items():
        token = processor.placeholders[kind]
        ids = processor.tokenizer.encode(token, add_special_tokens=False, verbose=False)
        if ids.count(index) != 1:
            found = processor.image_token_id if kind == "image" else processor.video_token_id
            what = f"gives {token} the id {found}" if found in ids else f"splits {token} into {len(ids)} tokens"
            raise RedipruneError(
                f"the config says that {kind}_token_id is {index}, but the tokenizer {what}: the {kind} would not be seen; "
                f"correct {kind}_token_id (or {kind}_token_index) in the checkpoint's config.json, or take the tokenizer that "
                "belongs to it, and export it again"
            )


def _parts(message: Message) -> Sequence[Message]:
    return () if isinstance(message["content"], str) else message["content"]


def _replaced(message: Message, old: str, new: str) -> Message:
    """A message with `old` replaced in its texts."""
    if isinstance(message["content"], str):
        return {**message, "content": message["content"].replace(old, new)}
    parts = [
        {**part, "text": part["text"].replace(old, new)} if part["type"] == "text" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}
