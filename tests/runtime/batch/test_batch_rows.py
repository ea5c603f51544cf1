"""Rows of files, folders and tables, and those that are no requests."""

import json
from pathlib import Path

import pytest
from rediprune.runtime.batch.batch_rows import BadRowError, BatchSource, Question, Row, RowReader, context_of
from rediprune.runtime.errors import RedipruneError

from .conftest import row


def source(path: Path, prompt: str | None = None, max_bytes: int = 1000, **fields: object) -> BatchSource:
    return BatchSource(path, Question(prompt, fields), max_bytes)


def test_lines_are_rows_but_for_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\r\n\n   \n{"b":2}\nlast')
    assert [(each.number, each.text) for each in source(path).rows()] == [
        (1, b'{"a":1}'),
        (2, b'{"b":2}'),
        (3, b"last"),
    ]
    assert source(path).count() == 3


def test_a_line_that_is_too_long_is_not_held_and_the_next_is_found(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 1000 + b"\n" + b"y" * 1001 + b"\n" + b"z" * (3 << 20) + b"\nend\n" + b"w" * 5000)
    rows = list(source(path).rows())
    assert [(each.number, each.too_long, each.text[:1]) for each in rows] == [
        (1, False, b"x"),
        (2, True, b"y"),
        (3, True, b"z"),
        (4, False, b"e"),
        (5, True, b"w"),
    ]
    assert max(len(each.text) for each in rows) == 1000
    with pytest.raises(BadRowError, match="max-body-mb"):
        RowReader().request(rows[1], "m")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_json_line"),
        ("[" * 100_000, "invalid_json_line"),
        ("[1]", "invalid_request"),
        ('{"body": {}}', "missing_custom_id"),
        ('{"custom_id": 3, "body": {}}', "missing_custom_id"),
        ('{"custom_id": "a", "method": "GET", "body": {}}', "invalid_method"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "invalid_url"),
        ('{"custom_id": "a", "body": 3}', "invalid_request"),
    ],
)
def test_what_is_no_request_is_told(text: str, code: str) -> None:
    with pytest.raises(BadRowError) as bad:
        RowReader().request(Row(1, text.encode()), "m")
    assert bad.value.code == code and bad.value.message


def test_the_second_of_two_with_one_id_is_refused_also_after_a_restart() -> None:
    first, second = Row(1, json.dumps(row(1)).encode()), Row(2, json.dumps(row(1)).encode())
    for reader in (RowReader(), RowReader()):
        reader.note(first)
        with pytest.raises(BadRowError, match="row 1 has the same custom_id"):
            reader.request(second, "m")
        assert reader.request(first, "m")[0] == "row-1"  # itself it may be again


def test_a_body_without_a_model_gets_it_and_never_streams() -> None:
    custom_id, body = RowReader().request(Row(1, json.dumps(row(1, stream=True)).encode()), "m")
    assert (custom_id, body["model"], body["stream"]) == ("row-1", "m", False)
    assert RowReader().request(Row(1, json.dumps(row(1, model="other")).encode()), "m")[1]["model"] == "other"


def test_an_identity_is_of_the_row_its_place_and_what_answers_it() -> None:
    context = context_of("digest", {"keep": 0.15}, "limits", "m")
    known = {Row(1, b"a").identity(context)}
    for other in (
        Row(2, b"a").identity(context),
        Row(1, b"b").identity(context),
        Row(1, b"a", too_long=True).identity(context),
        Row(1, b"a").identity(context_of("other", {"keep": 0.15}, "limits", "m")),
        Row(1, b"a").identity(context_of("digest", {"keep": 0.5}, "limits", "m")),
    ):
        assert other not in known
        known.add(other)


def test_a_folder_is_its_pictures_in_order(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a b.PNG").write_bytes(b"x")
    (folder / "notes.txt").write_text("no picture")
    rows = list(source(folder, "Why?", max_tokens=7).rows())
    told = [json.loads(each.text) for each in rows]
    assert [each["custom_id"] for each in told] == ["astronaut.jpg", "chelsea.jpg", "sub/a b.PNG"]
    assert told[2]["body"]["max_tokens"] == 7
    parts = told[2]["body"]["messages"][0]["content"]
    assert parts[0]["image_url"]["url"] == "sub/a b.PNG" and parts[1]["text"] == "Why?"


def test_a_table_has_a_column_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("\ufeffID,Image,prompt\nx,a.png,\n,b.png,Own?\n", encoding="utf-8")
    told = [json.loads(each.text) for each in source(path, "All?").rows()]
    assert [each["custom_id"] for each in told] == ["x", "2"]
    assert [each["body"]["messages"][0]["content"][1]["text"] for each in told] == ["All?", "Own?"]


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    lines, table = tmp_path / "in.jsonl", tmp_path / "in.csv"
    lines.write_text("{}")
    table.write_text("name\na.png\n")
    (tmp_path / "empty").mkdir()
    for path, prompt, words in (
        (tmp_path / "none", None, "is not there"),
        (Path(__file__), None, "neither a .jsonl file nor a .csv file nor a folder"),
        (lines, "Why?", "say it themselves"),
        (tmp_path / "empty", None, "--prompt"),
        (tmp_path / "empty", "Why?", "holds no pictures"),
        (table, "Why?", "no column called image"),
    ):
        with pytest.raises(RedipruneError, match=words):
            list(source(path, prompt).rows())
    table.write_text("image\na.png\n")
    with pytest.raises(RedipruneError, match="--prompt"):
        list(source(table).rows())
