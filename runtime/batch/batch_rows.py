"""The rows of a batch: OpenAI's batch files, folders of pictures, and tables of pictures."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RedipruneError

ID_PREFIX = "batch_req_"  # of a row's identity
URL = "/v1/chat/completions"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_LINES = (".jsonl", ".ndjson", ".json")
_COLUMNS = ("image", "picture", "path", "file", "filename")
_QUESTIONS = ("prompt", "question")


@dataclass(frozen=True)
class Row:
    """One request of a batch.

    Attributes:
        number: from 1 on.
        text: as the input has it, or as an OpenAI batch file would: what the row is known by.
        too_long: it has more bytes than a request may have, and is not held.
    """

    number: int
    text: bytes
    too_long: bool = False

    def identity(self, context: str) -> str:
        """What its answer is known by: a hash of the row, its place and all else that decides the answer.

        Args:
            context: what answers it (`context_of`).
        """
        told = hashlib.sha256(f"{context}\n{self.number}\n{int(self.too_long)}\n".encode())
        told.update(self.text)
        return f"{ID_PREFIX}{told.hexdigest()[:32]}"


class BadRowError(Exception):
    """A row that is no request; the message says why.

    Attributes:
        code: a short machine-readable name.
        custom_id: the row's own, where it could be read.
    """

    def __init__(self, code: str, message: str, custom_id: str | None = None):
        super().__init__(message)
        self.code, self.message, self.custom_id = code, message, custom_id


@dataclass
class RowReader:
    """Makes requests of rows, one after another, so that two with one `custom_id` are noticed."""

    _seen: dict[bytes, int] = field(default_factory=dict)

    def note(self, row: Row) -> None:
        """Remember a row that has its answer."""
        with suppress(BadRowError):
            self.request(row, "")

    def request(self, row: Row, model: str) -> tuple[str, dict[str, Any]]:
        """A row's `custom_id`, and the body of its request.

        Args:
            row: of the input.
            model: where its body names none.

        Raises:
            BadRowError: it is no request.
        """
        if row.too_long:
            raise BadRowError("too_large", "the line is longer than a request may be (--max-body-mb)")
        try:
            told = json.loads(row.text)
        except (ValueError, RecursionError) as error:
            raise BadRowError("invalid_json_line", f"the line is not JSON ({type(error).__name__})") from None
        if not isinstance(told, dict):
            raise BadRowError("invalid_request", "the line is no JSON object")
        custom_id = told.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise BadRowError("missing_custom_id", "custom_id must be a string that is not empty")
        digest = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).digest()[:16]
        first = self._seen.setdefault(digest, row.number)
        if first != row.number:
            raise BadRowError("duplicate_custom_id", f"row {first} has the same custom_id", custom_id)
        if told.get("method", "POST") != "POST":
            raise BadRowError("invalid_method", "method must be POST", custom_id)
        if told.get("url", URL) != URL:
            raise BadRowError("invalid_url", f"url must be {URL}", custom_id)
        body = told.get("body")
        if not isinstance(body, dict):
            raise BadRowError("invalid_request", "body must be an object: that of a chat request", custom_id)
        return custom_id, {"model": model, **body, "stream": False}


@dataclass(frozen=True)
class Question:
    """What is asked about every picture of a folder or table.

    Attributes:
        prompt: the question.
        fields: of the request's body besides.
    """

    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchSource:
    """The input of a batch: a .jsonl file, a .csv file or a folder.

    Attributes:
        path: of the input.
        question: about every picture of a folder or table.
        max_bytes: of one line of a .jsonl file.
    """

    path: Path
    question: Question
    max_bytes: int

    def __post_init__(self) -> None:
        lines = not self.path.is_dir() and self.path.suffix.lower() != ".csv"
        if not self.path.exists():
            raise RedipruneError(f"'{self.path}' is not there; give a .jsonl file, a .csv file or a folder of pictures")
        if lines and self.path.suffix.lower() not in _LINES and self.path.is_file():
            raise RedipruneError(
                f"'{self.path}' is neither a .jsonl file nor a .csv file nor a folder of pictures; name it by what it holds"
            )
        if lines and (self.question.prompt is not None or self.question.fields):
            raise RedipruneError(
                "--prompt, --max-new-tokens and --temperature are for folders and .csv files: "
                "the rows of a .jsonl file say it themselves"
            )
        if self.path.is_dir() and not self.question.prompt:
            raise RedipruneError(f"'{self.path}' is a folder of pictures: say with --prompt what is asked about each")

    @property
    def folder(self) -> Path:
        """What relative paths in it are relative to."""
        return self.path if self.path.is_dir() else self.path.resolve().parent

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            RedipruneError: the input cannot be read.
        """
        if self.path.is_dir():
            yield from self._pictures()
        elif self.path.suffix.lower() == ".csv":
            yield from self._table()
        else:
            yield from self._lines()

    def count(self) -> int:
        """How many rows there are; raises as `rows`."""
        return sum(1 for _ in self.rows())

    def _lines(self) -> Iterator[Row]:
        number = 0
        with self.path.open("rb") as file:
            while line := file.readline(self.max_bytes + 2):
                too_long = len(line) > self.max_bytes + 1 or (len(line) > self.max_bytes and line[-1:] != b"\n")
                rest = line
                while too_long and rest and rest[-1:] != b"\n":
                    rest = file.readline(1 << 20)
                if line.strip():
                    number += 1
                    yield Row(number, line[:1000] if too_long else line.strip(), too_long)

    def _pictures(self) -> Iterator[Row]:
        found = sorted(
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob("*")
            if path.suffix.lower() in PICTURES and path.is_file()
        )
        if not found:
            raise RedipruneError(f"'{self.path}' holds no pictures ({', '.join(PICTURES)})")
        assert self.question.prompt
        for number, name in enumerate(found, 1):
            yield self._asked(number, name, name, self.question.prompt)

    def _table(self) -> Iterator[Row]:
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or ()
            named = {str(name).strip().lower(): name for name in columns}
            image = next((named[name] for name in _COLUMNS if name in named), None)
            question = next((named[name] for name in _QUESTIONS if name in named), None)
            if image is None:
                raise RedipruneError(
                    f"'{self.path}' has no column called {' or '.join(_COLUMNS)}; its columns are: {', '.join(columns)}"
                )
            if question is None and not self.question.prompt:
                raise RedipruneError(
                    f"'{self.path}' has no column called prompt or question: say with --prompt what is asked about each"
                )
            try:
                for number, row in enumerate(table, 1):
                    asked = (row.get(question) if question else None) or self.question.prompt or ""
                    own = row.get(named.get("custom_id", named.get("id", ""))) or str(number)
                    yield self._asked(number, own, row.get(image) or "", asked)
            except csv.Error as error:
                raise RedipruneError(f"'{self.path}' is no table of comma-separated values ({error})") from None

    def _asked(self, number: int, custom_id: str, picture: str, prompt: str) -> Row:
        parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": prompt}]
        body = {"messages": [{"role": "user", "content": parts}], **self.question.fields}
        told = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}
        return Row(number, json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def context_of(digest: str, defaults: Mapping[str, Any], limits: Any, name: str) -> str:
    """All that decides an answer besides its row: the bundle, the settings that rows leave open, the model's name.

    Args:
        digest: of the bundle's manifest.
        defaults: selection settings where a row says nothing.
        limits: what a row may ask for.
        name: of the model.
    """
    return json.dumps([digest, dict(defaults), repr(limits), name], sort_keys=True)
