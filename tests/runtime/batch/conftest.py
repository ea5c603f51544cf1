"""Batches of a tiny bundle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PICTURES = ("astronaut.jpg", "chelsea.jpg")


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A row about a picture beside the file, or about none."""
    picture = {"type": "image_url", "image_url": {"url": PICTURES[number % 2]}}
    text = {"type": "text", "text": f"What is this, number {number}?"}
    parts = [text] if number % 3 == 2 else [picture, text]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4 + number % 5, "temperature": 0}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body | fields}


@pytest.fixture
def folder(tmp_path: Path, photo: Path, cat: Path) -> Path:
    """A folder with two pictures."""
    for path in (photo, cat):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def requests_of(folder: Path) -> Callable[[list[Any]], Path]:
    """A requests file beside the pictures; rows that are text stand there as they are."""

    def write(rows: list[Any]) -> Path:
        lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
        path = folder / "requests.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def answers(path: Path) -> list[dict[str, Any]]:
    """Every line of an output, which must be whole."""
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def text_of(line: dict[str, Any]) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"]
