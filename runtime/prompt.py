"""The prompt: what the user asked, with one placeholder per image or video, in the checkpoint's chat form."""

from collections.abc import Sequence
from typing import Any

from .errors import RedipruneError
from .media.preprocess import Processor

Message = dict[str, Any]
Prompt = str | Sequence[Message]


def render_prompt(processor: Processor, prompt: Prompt, images: int, videos: int) -> str:
    """Text of a prompt.

    Args:
        processor: the bundle's.
        prompt: a question, or the messages of a dialogue in transformers' form (content a text, or parts of type
            "text", "image" and "video"). A question that holds the placeholders itself keeps them where they are;
            otherwise the images and videos come first. A text that is already in the checkpoint's chat form may be
            given with `chat=False` to `Pipeline.generate`.
        images, videos: how many of each there are.

    Raises:
        RedipruneError: an empty prompt, or placeholders that are not as many as the images and videos.
    """
    messages = question(processor, prompt, images, videos) if isinstance(prompt, str) else list(prompt)
    if not messages or (isinstance(prompt, str) and not prompt.strip()):
        raise RedipruneError("the prompt is empty; ask a question")
    if processor.template is None:
        text = "\n".join(_plain(processor, message) for message in messages)
    else:
        text = processor.render(messages)
    check_placeholders(processor, text, images, videos)
    return text


def question(processor: Processor, text: str, images: int, videos: int) -> list[Message]:
    """A question as the one message of a dialogue."""
    if processor.image_token in text or processor.video_token in text:
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def check_placeholders(processor: Processor, text: str, images: int, videos: int) -> None:
    for kind, token, given in (("image", processor.image_token, images), ("video", processor.video_token, videos)):
        found = text.count(token)
        if found != given:
            raise RedipruneError(
                f"the prompt has {found} {token} placeholder{'s' * (found != 1)} and {given} {kind}"
                f"{'s were' if given != 1 else ' was'} given; give one for each"
            )


def _plain(processor: Processor, message: Message) -> str:
    """A message for a checkpoint without a chat template: placeholders, then the text."""
    content = message["content"]
    if isinstance(content, str):
        return content
    tokens = {"image": processor.image_token, "video": processor.video_token}
    return "\n".join(tokens.get(part["type"]) or part["text"] for part in content)
