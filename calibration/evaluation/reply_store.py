"""Replies kept in a file (JSONL), so that an interrupted evaluation goes on where it stopped.

A reply is taken again only where everything that it may depend on is the same: the content of the bundle, of the images
and videos, the questions, the options, the libraries and, for its time, the processor.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle, file_sha256
from ...runtime.errors import RedipruneError
from ...runtime.machine import processor_name
from .question_dataset import Question
from .scores import Reply

_FORMAT = 4  # of a stored reply
_LIBRARIES = (
    *("rediprune", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch"),
    *("transformers", "tokenizers", "jinja2", "pillow", "av"),
)


class ReplyStore:
    """Replies of an evaluation by rule, keep ratio and number of the question; kept in a file if there is one."""

    def __init__(self, path: Path | None, key: str):
        """Read what an earlier evaluation kept.

        Args:
            path: the file; None keeps nothing.
            key: from `replies_key`; replies under another one are left alone.

        Raises:
            RedipruneError: the file holds something else.
        """
        self.path, self.key = path, key
        self._replies = {} if path is None or not path.is_file() else _read(path, key)

    def get(self, rule: str, keep: float, number: int) -> Reply | None:
        """The reply to a question, if it is known."""
        return self._replies.get((rule, keep, number))

    def add(self, rule: str, keep: float, number: int, reply: Reply) -> None:
        """Keep a reply; a line is written at once."""
        self._replies[rule, keep, number] = reply
        if self.path is not None:
            line = {"key": self.key, "rule": rule, "keep": keep, "at": number, "reply": asdict(reply)}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def replies_key(
    bundle: Bundle, questions: Sequence[Question], backends: Mapping[str, str], options: dict[str, Any]
) -> str:
    """Identify by content everything that replies and their times depend on.

    Args:
        bundle: all that its manifest lists counts: stages, processor files (chat template, tokenizer, generation config),
            defaults, and the engines of the backend.
        questions: with the content of their images and videos.
        backends: by stage, what runs it.
        options: all else that an evaluation was asked for.
    """
    made = bundle.manifest.model_dump(mode="json", exclude={"digest", "calibration", "engines", "plan"})
    engines = [found for name in sorted(set(backends.values())) if (found := bundle.manifest.engines.get(name))]
    hashes = {media: file_sha256(media) for media in {question.media for question in questions}}
    asked = [(hashes[q.media], q.video, q.question, q.answer, q.match) for q in questions]
    depends_on = [
        _FORMAT,
        made,
        [engine.model_dump(mode="json") for engine in engines],
        asked,
        [dict(backends), options],
        {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
        processor_name(),
    ]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read(path: Path, key: str) -> dict[tuple[str, float, int], Reply]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RedipruneError(f"'{path}' holds no replies of an earlier call; give --out another file") from error
    if text and not text.endswith("\n"):
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")  # what was broken off stays a line of its own
    replies = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # broken off while it was written
        if isinstance(entry, dict) and entry.get("key") == key and "reply" in entry:
            replies[entry["rule"], entry["keep"], entry["at"]] = Reply(**entry["reply"])
    return replies
