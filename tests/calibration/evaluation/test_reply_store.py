"""Kept replies are taken again only where everything that they depend on is the same."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rediprune.calibration.evaluation import reply_store
from rediprune.calibration.evaluation.question_dataset import Question
from rediprune.calibration.evaluation.reply_store import ReplyStore, replies_key
from rediprune.calibration.evaluation.scores import Reply
from rediprune.runtime.bundle import Bundle, file_sha256
from rediprune.runtime.errors import RedipruneError

REPLY = Reply("yes", True, 5, 10, 0.25, 1e6, [3, 4])


@pytest.fixture
def question(tmp_path: Path) -> Question:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "picture.bmp")  # whose size is that of its pixels
    return Question(tmp_path / "picture.bmp", False, "What?", "a circle", "shape")


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path], tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))


def key(bundle: Bundle, *questions: Question, backend: str = "ort", **options: object) -> str:
    return replies_key(bundle, questions, dict.fromkeys(bundle.manifest.stages, backend), options)


def test_other_pictures_of_the_same_name_and_size_are_other_questions(bundle: Bundle, question: Question) -> None:
    before = key(bundle, question)
    content = question.media.read_bytes()
    Image.new("RGB", (8, 8), "blue").save(question.media)
    assert len(question.media.read_bytes()) == len(content) and key(bundle, question) != before
    question.media.write_bytes(content)
    assert key(bundle, question) == before


def test_the_same_picture_elsewhere_is_the_same_question(bundle: Bundle, question: Question) -> None:
    moved = replace(question, media=Path(shutil.copy(question.media, question.media.with_name("other name.bmp"))))
    assert key(bundle, moved) == key(bundle, question)


@pytest.mark.parametrize("file", ["processor/chat_template.jinja", "processor/generation_config.json"])
def test_another_chat_template_or_generation_config_makes_other_replies(
    bundle: Bundle, question: Question, file: str
) -> None:
    assert file in bundle.manifest.files
    before = key(bundle, question)
    path = bundle.path(file)
    path.write_text(path.read_text() + "\n")
    bundle.manifest.files[file] = file_sha256(path)
    bundle.write_manifest()
    assert key(Bundle.open(bundle.folder), question) != before


def test_whatever_else_replies_depend_on_makes_other_replies(
    bundle: Bundle, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key(bundle, question)}
    for other in (
        replace(question, question="Which?"),
        replace(question, answer="a square"),
        replace(question, video=True),
        replace(question, match="option"),
    ):
        keys.add(key(bundle, other))
    keys.add(key(bundle, question, question))
    keys.add(key(bundle, question, backend="openvino"))
    keys.add(key(bundle, question, frames=4))
    defaults = bundle.manifest.defaults.model_copy(update={"alpha": 0.25})
    keys.add(key(Bundle(bundle.folder, bundle.manifest.model_copy(update={"defaults": defaults})), question))
    for name in ("_version", "processor_name"):
        with monkeypatch.context() as patch:
            patch.setattr(reply_store, name, lambda *_: "another")
            keys.add(key(bundle, question))
    assert len(keys) == 11
    assert key(bundle, replace(question, kind="colour")) in keys  # a group is no part of a reply


def test_what_a_report_notes_in_a_bundle_changes_no_reply(bundle: Bundle, question: Question) -> None:
    noted = bundle.manifest.model_copy(update={"digest": "another", "calibration": None, "engines": {}})
    assert key(Bundle(bundle.folder, noted), question) == key(bundle, question)


def test_replies_are_kept_for_their_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    ReplyStore(path, "one").add("rediprune", 0.15, 3, REPLY)
    ReplyStore(path, "two").add("rediprune", 0.15, 3, replace(REPLY, answer="no"))
    assert ReplyStore(path, "one").get("rediprune", 0.15, 3) == REPLY
    assert ReplyStore(path, "one").get("rediprune", 0.15, 4) is None
    assert ReplyStore(path, "three").get("rediprune", 0.15, 3) is None
    assert len(path.read_text().splitlines()) == 2


def test_without_a_file_nothing_is_kept_but_for_now(tmp_path: Path) -> None:
    store = ReplyStore(None, "one")
    store.add("random", 0.5, 0, REPLY)
    assert store.get("random", 0.5, 0) == REPLY and not list(tmp_path.iterdir())


def test_a_line_that_was_broken_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    ReplyStore(path, "one").add("rediprune", 1.0, 0, REPLY)
    path.write_text(path.read_text() + '{"key": "one", "rule": "redi')
    again = ReplyStore(path, "one")
    assert again.get("rediprune", 1.0, 0) == REPLY
    again.add("rediprune", 1.0, 1, REPLY)
    assert json.loads(path.read_text().splitlines()[-1])["at"] == 1


@pytest.mark.parametrize("line", ["7", "[]", '{"key": "one"}', '{"key": "other", "reply": 1}', '"one"'])
def test_lines_of_others_are_passed_over(line: str, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(line + "\n")
    assert ReplyStore(path, "one").get("rediprune", 1.0, 0) is None


def test_a_file_of_something_else_is_refused(photo: Path) -> None:
    with pytest.raises(RedipruneError, match="give --out another file"):
        ReplyStore(photo, "one")
