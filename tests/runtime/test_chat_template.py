"""Templates of every kind, beside transformers' own `apply_chat_template` where that shows the dialogue at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.processor import Processor
from rediprune.runtime.prompt import render_prompt
from transformers import AutoProcessor

# As on the hub: llava-1.5-7b-hf (with transformers' own `generation` tag), Video-LLaVA-7B-hf, and one for a text model.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VIDEO_LLAVA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT_ONLY = {
    "plus": "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + ' ' }}{% endfor %}ASSISTANT:",
    "tilde": "{% for m in messages %}{{ m['role'].upper() ~ ': ' ~ m['content'] ~ ' ' }}{% endfor %}ASSISTANT:",
    "trim": "{% for m in messages %}{{ m.role.upper() }}: {{ m.content | trim }} {% endfor %}ASSISTANT:",
    "method": "{% for m in messages %}{{ m.role.upper() }}: {{ m.content.strip() }} {% endfor %}ASSISTANT:",
    "texts of parts": (
        "{% for m in messages %}{{ m.role.upper() }}: {% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %} {% endfor %}ASSISTANT:"
    ),
    "user parts, assistant text": (
        "{% for m in messages %}{{ m.role.upper() }}: {% if m.role == 'user' %}{% for part in m.content %}"
        "{{ part.text if part.type == 'text' else '<' + part.type + '>\n' }}{% endfor %}{% else %}"
        "{{ m.content + '' }}{% endif %} {% endfor %}ASSISTANT:"
    ),
}

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(*parts: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(parts)}


SHAPES: dict[str, list[dict[str, Any]]] = {
    "text": [user(text("Why?"))],
    "image, text": [user(IMAGE, text("What is it?"))],
    "text, image": [user(text("What is it?"), IMAGE)],
    "two images": [user(IMAGE, IMAGE, text("Which is larger?"))],
    "between": [user(text("First"), IMAGE, text("then"), IMAGE, text("?"))],
    "image alone": [user(IMAGE, text(""))],
    "system": [{"role": "system", "content": [text("Be brief.")]}, user(IMAGE, text("What is it?"))],
    "turns": [user(IMAGE, text("What is it?")), assistant(text("A cup.")), user(text("And left of it?"))],
    "image later": [user(text("Hello")), assistant(text("Hello!")), user(IMAGE, text("What is it?"))],
    "image each": [user(IMAGE, text("This?")), assistant(text("Ham")), user(IMAGE, text("And this?"))],
    "answer begun": [user(IMAGE, text("What is it?")), assistant(text("It is"))],
    "odd words": [user(IMAGE, text("  «Ünïcode» 图片 {{ 7 * 7 }} {% x %} \\ 'quotes' \"too\"\n<b> 🎈 "))],
    "extra keys": [user(IMAGE, text("What is it?")) | {"name": "Ann"}],
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]) -> Callable[..., Path]:
    """The processor files of a made checkpoint, its template replaced, in the file that is named."""

    def make(template: str | None, file: str = "chat_template.jinja", bundle: str = "llava") -> Path:
        folder = tmp_path_factory.mktemp("templates") / "checkpoint"
        shutil.copytree(checkpoint_of(bundle), folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "chat_template.jinja").unlink()
        if template is not None and file.endswith(".jinja"):
            (folder / file).write_text(template, encoding="utf-8")
        elif template is not None:
            document = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
            (folder / file).write_text(json.dumps(document | {"chat_template": template}))
        return folder

    return make


FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("template", [LLAVA, VIDEO_LLAVA], ids=["llava", "video_llava"])
def test_dialogues_are_those_of_transformers(folder_of: Callable[..., Path], template: str, file: str) -> None:
    folder = folder_of(template, file)
    ours, theirs = Processor.load(folder), AutoProcessor.from_pretrained(folder)
    if file == "tokenizer_config.json":  # of which transformers' processor does not take it
        theirs = theirs.tokenizer
    assert ours.chat_template.origin == file and ours.chat_template.warning is None
    for name, messages in SHAPES.items():
        for begin in (True, False):
            options = {"add_generation_prompt": begin, "tokenize": False}
            assert ours.render(messages, begin) == theirs.apply_chat_template(messages, **options), name


@pytest.mark.parametrize("kind", TEXT_ONLY)
def test_templates_of_texts_get_one_text_with_the_placeholder_inside(folder_of: Callable[..., Path], kind: str) -> None:
    processor = Processor.load(folder_of(TEXT_ONLY[kind]))
    assert render_prompt(processor, "What is it?", 0, 0) == "USER: What is it? ASSISTANT:"
    assert render_prompt(processor, "What is it?", 2, 0) == "USER: <image>\n<image>\nWhat is it? ASSISTANT:"
    assert render_prompt(processor, "Is <image> it?", 1, 0) == "USER: Is <image> it? ASSISTANT:"
    assert render_prompt(processor, SHAPES["turns"], 1, 0) == (
        "USER: <image>\nWhat is it? ASSISTANT: A cup. USER: And left of it? ASSISTANT:"
    )
    ids = processor.encode(render_prompt(processor, "What is it?", 2, 0))
    assert ids.count(processor.image_token_id) == 2


@pytest.mark.parametrize("template", TEXT_ONLY.values(), ids=TEXT_ONLY)
def test_texts_that_transformers_shows_are_left_as_they_are(folder_of: Callable[..., Path], template: str) -> None:
    if "m.role == 'user'" in template:
        pytest.skip("shows a user's parts only")
    processor = Processor.load(folder_of(template))
    messages = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "Where?"},
    ]
    theirs = processor.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert render_prompt(processor, messages, 1, 0) == theirs


@pytest.mark.parametrize(
    ("bundle", "expected", "form"),
    [
        ("llava", "USER: <image>\nWhat is it? ASSISTANT: A cup.</s>USER: And left of it? ASSISTANT:", "USER: "),
        (
            "llava_siglip",
            "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cup.<|im_end|>\n"
            "<|im_start|>user\nAnd left of it?<|im_end|>\n<|im_start|>assistant\n",
            "ChatML",
        ),
    ],
)
def test_without_a_template_the_documented_form_is_taken_and_said(
    folder_of: Callable[..., Path], bundle: str, expected: str, form: str
) -> None:
    processor = Processor.load(folder_of(None, bundle=bundle))
    assert processor.chat_template.origin is None
    assert form in str(processor.chat_template.warning)
    assert processor.render(SHAPES["turns"]) == expected


def test_a_byte_order_mark_is_no_part_of_a_template(folder_of: Callable[..., Path]) -> None:
    assert Processor.load(folder_of("\ufeff" + LLAVA)).render(SHAPES["text"]) == "USER: Why? ASSISTANT:"


def test_several_named_templates(folder_of: Callable[..., Path]) -> None:
    folder = folder_of(None)
    file = folder / "tokenizer_config.json"
    document = json.loads(file.read_text())
    named = {"tool_use": "no", "default": LLAVA}
    for several in (named, [{"name": name, "template": template} for name, template in named.items()]):
        file.write_text(json.dumps(document | {"chat_template": several}))
        assert Processor.load(folder).template == LLAVA
    for wrong, word in (({"tool_use": "no"}, "default"), ([1], "default"), (7, "no text")):
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(RedipruneError, match=word):
            Processor.load(folder)


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for m in messages %}", "refuses"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("USER: hello ASSISTANT:", "leaves out"),
        ("{{ messages[0]['content'][7]['text'] }}", "refuses"),
        ("{{ messages | length / 0 }}", "leaves out"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
)
def test_templates_that_do_not_show_the_question_are_refused(
    folder_of: Callable[..., Path], template: str, word: str
) -> None:
    processor = Processor.load(folder_of(template))
    for count in (0, 1):
        with pytest.raises(RedipruneError, match=word) as caught:
            render_prompt(processor, "What is it?", count, 0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        ["What is it?"],
        [{"content": "What is it?"}],
        [{"role": 3, "content": "What is it?"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": ["What is it?"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [{"role": "user", "content": [{"text": "What is it?"}]}],
    ],
)
def test_what_is_no_dialogue_is_refused(folder_of: Callable[..., Path], messages: Any) -> None:
    with pytest.raises(RedipruneError, match="message 1"):
        render_prompt(Processor.load(folder_of(LLAVA)), messages, 0, 0)


# Templates put together from pieces as they are found: a head, what stands around a message, and how its content is read.
CONTENTS = st.sampled_from(
    [
        "{{ m['content'] }}",
        "{{ m.content | trim }}",
        "{{ '' + m['content'] }}",
        "{{ m['content'] ~ '' }}",
        "{% for p in m.content %}{{ p.text if p.type == 'text' else '<' ~ p.type ~ '>' }}{% endfor %}",
        "{% for p in m.content %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}",
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ p.text if p.type == 'text' else '<' ~ p.type ~ '>' }}{% endfor %}{% endif %}",
        "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for p in m.content | selectattr('type', 'equalto', 'video') %}<video>{% endfor %}"
        "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}",
        "{{ m.content | tojson }}",
        "",
    ]
)
AROUND = st.sampled_from(["", "\n", "USER: ", "<|im_start|>", "[INST] ", " [/INST]", "{# a note #}", "{{ bos_token }}"])
TEMPLATES = st.builds(
    lambda head, before, user, assistant, after, tail: (
        f"{head}{{% for m in messages %}}{before}{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}"
        f"{{% endif %}}{after}{{% endfor %}}{tail}"
    ),
    *(AROUND, AROUND, CONTENTS, CONTENTS, AROUND, AROUND),
)
WORDS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\ufdd0"), max_size=12).map(str.strip)
PARTS = st.lists(st.one_of(st.just(IMAGE), st.just(VIDEO), WORDS.map(text)), max_size=4)
DIALOGUES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.one_of(WORDS, PARTS)), min_size=1, max_size=3)


@given(template=TEMPLATES, dialogue=DIALOGUES)
@settings(max_examples=150, deadline=None)
def test_whatever_the_template_users_are_heard_or_refused(
    made: Processor, template: str, dialogue: list[tuple[str, Any]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in dialogue]
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    made.chat_template = type(made.chat_template)(template, "chat_template.jinja")
    counts = [sum(part["type"] == kind for part in parts) for kind in ("image", "video")]
    try:
        shown = render_prompt(made, messages, *counts)
    except RedipruneError as error:
        assert "\n" not in str(error)
        return
    assert [shown.count("<image>"), shown.count("<video>")] == counts
    for message in messages:
        if message["role"] == "user":
            content = message["content"]
            texts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
            for words in texts:
                assert words.replace("\r\n", "\n").strip() in shown


@pytest.fixture(scope="module")
def made(folder_of: Callable[..., Path]) -> Processor:
    return Processor.load(folder_of(LLAVA))
