"""Chat templates: found among a checkpoint's files, and fed with messages in the form that they can read.

Templates of the hub differ in what they take: a message's content as a list of parts, as one text, or either. Fed with
the wrong one they fail, or print a Python list, or leave the words out without an error. So the dialogue is first
rendered with its texts replaced by marks, and written in another form where the marks or the placeholders do not show.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from .errors import RedipruneError

Message = dict[str, Any]
Render = Callable[[list[Message]], str]

# A backslash, so that a mark inside the printed form of a Python list (where it is doubled) is not taken for the text.
_MARK = "[[{}\\]]"

# What is used where a checkpoint has no template. transformers' documentation of LLaVA: "USER: <image>\n<prompt>
# ASSISTANT: <answer></s>USER: <prompt> ASSISTANT:", the same for LLaVA-NeXT-Video and Video-LLaVA; decoders that were
# trained on ChatML have its tokens in their vocabulary.
_VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + (eos_token or ' ') }}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template.

    Attributes:
        text: its source.
        origin: name of the file it was read from; None where the checkpoint has none and the documented form of its
            family stands in.
    """

    text: str
    origin: str | None

    @property
    def warning(self) -> str | None:
        """What a user must know about it."""
        if self.origin is not None:
            return None
        form = "ChatML" if self.text == _CHATML else "'USER: … ASSISTANT:'"
        return f"the checkpoint has no chat template: prompts take the documented form of its family, {form}"


def find_template(folder: Path, documents: Mapping[str, Mapping[str, Any]], chatml: bool) -> ChatTemplate:
    """The chat template of a checkpoint, from the file that transformers' processors take it from.

    Args:
        folder: of the processor files.
        documents: JSON files by name, those that are there of processor_config.json, chat_template.json and
            tokenizer_config.json.
        chatml: whether the tokenizer knows ChatML's tokens.

    Raises:
        RedipruneError: a template is no text, or there are several and none is the default.
    """
    for name in ("processor_config.json", "chat_template.json"):
        if found := _named_default(documents.get(name, {}).get("chat_template"), folder / name):
            return ChatTemplate(found, name)
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return ChatTemplate(file.read_text(encoding="utf-8-sig"), file.name)
        except (OSError, ValueError) as error:
            raise RedipruneError(f"{file} cannot be read ({error}): copy it anew from the checkpoint") from None
    name = "tokenizer_config.json"
    if found := _named_default(documents.get(name, {}).get("chat_template"), folder / name):
        return ChatTemplate(found, name)
    return ChatTemplate(_CHATML if chatml else _VICUNA, None)


def _named_default(template: Any, file: Path) -> str | None:
    """The template of a file's entry; of several named ones, a list or a mapping, the default."""
    try:
        named = {entry["name"]: entry["template"] for entry in template} if isinstance(template, list) else template
        template = named["default"] if isinstance(named, dict) else named
    except (KeyError, TypeError):
        raise RedipruneError(f"{file} has chat templates, but none is named 'default': name one so") from None
    if template is not None and not isinstance(template, str):
        raise RedipruneError(f"the chat template in {file} is no text: copy the file anew from the checkpoint")
    return template


def check_messages(messages: Sequence[Any]) -> None:
    """Refuse what is no dialogue.

    Raises:
        RedipruneError: naming the message and what is wrong with it.
    """
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RedipruneError(f"message {number} needs a role and a content: {{'role': 'user', 'content': …}}")
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list | tuple):
            raise RedipruneError(f"the content of message {number} must be a text or a list of parts")
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "image", "video") or (kind == "text" and not isinstance(part.get("text"), str)):
                raise RedipruneError(
                    f"message {number} has a part that is not known here: give {{'type': 'text', 'text': …}}, "
                    "{'type': 'image'} or {'type': 'video'}"
                )


def render_messages(render: Render, messages: Sequence[Message], tokens: Mapping[str, str]) -> str:
    """Render a dialogue with a template, in the first form in which the template shows all of it.

    A form that is given and works is left alone, so that the text is that of transformers' `apply_chat_template`.
    Otherwise a text becomes a part, or parts become one text with the placeholders inside, each on its line. A system's
    or assistant's text may be missing (some templates leave them out by intent), a user's may not.

    Args:
        render: the template, messages in, text out.
        messages: as `check_messages` allows.
        tokens: the placeholder of each kind of medium, "image" and "video".

    Raises:
        RedipruneError: the template fails on these messages, or shows none of their forms whole.
    """
    partial, failure = None, None
    for written in _forms(messages, tokens):
        try:
            shown = _shown(render, written, tokens)
            if shown == _WHOLE:
                return render(written)
            if shown == _USERS_ONLY and partial is None:
                partial = written
        except MemoryError:
            raise
        except Exception as error:  # a template is data: what goes wrong in one is of any kind
            failure = failure or error
    if partial is not None:
        return render(partial)
    if isinstance(failure, TemplateError) and str(failure):
        raise RedipruneError(f"the chat template refuses these messages: {' '.join(str(failure).split())}")
    raise RedipruneError(
        "the chat template leaves out the user's words or placeholders, however they are written; "
        "mend chat_template.jinja, or write the prompt yourself with chat=False (--raw)"
    )


_WHOLE, _USERS_ONLY, _LACKING = 2, 1, 0


def _forms(messages: Sequence[Message], tokens: Mapping[str, str]) -> Iterator[list[Message]]:
    """Ways to write a dialogue, the given one first; messages of one role are written alike."""
    groups = [message["role"] if message["role"] in ("user", "assistant", "system") else "" for message in messages]
    known = list(dict.fromkeys(groups))  # four at most, so that the ways are few
    for chosen in product((_as_given, _as_text, _as_parts), repeat=len(known)):
        write = dict(zip(known, chosen, strict=True))
        yield [
            {**message, "content": write[group](message["content"], tokens)}
            for group, message in zip(groups, messages, strict=True)
        ]


def _as_given(content: Any, tokens: Mapping[str, str]) -> Any:
    return content


def _as_text(content: Any, tokens: Mapping[str, str]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if part["type"] == "text" else tokens[part["type"]] for part in content)


def _as_parts(content: Any, tokens: Mapping[str, str]) -> list[Message]:
    return [{"type": "text", "text": _as_text(content, tokens)}]


def _shown(render: Render, messages: list[Message], tokens: Mapping[str, str]) -> int:
    """How much of a dialogue a template shows: all, all of the user's, or less."""
    marks: dict[str, bool] = {}  # mark → whether it stands for a user's text
    media = dict.fromkeys(tokens, 0)

    def marked(text: str, role: str) -> str:
        mark = _MARK.format(len(marks))
        marks[mark] = role == "user"
        written = [kind for kind, token in tokens.items() for _ in range(text.count(token))]
        for kind in written:
            media[kind] += 1
        return "\n".join([*(tokens[kind] for kind in written), mark])

    probe = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = marked(content, message["role"])
        else:
            for part in content:
                media[part["type"]] = media.get(part["type"], 0) + (part["type"] != "text")
            content = [
                {**part, "text": marked(part["text"], message["role"])} if part["type"] == "text" else part
                for part in content
            ]
        probe.append({**message, "content": content})
    text = render(probe)
    if any(text.count(token) != media[kind] for kind, token in tokens.items()):
        return _LACKING
    missing = [users for mark, users in marks.items() if mark not in text]
    return _WHOLE if not missing else _LACKING if any(missing) else _USERS_ONLY
