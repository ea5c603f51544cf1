"""The file of a batch's answers: whole lines, each once, continued where they end."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.batch.batch_output import BatchOutput
from rediprune.runtime.batch.batch_rows import Row
from rediprune.runtime.errors import RedipruneError

ROWS = [Row(number, f"row {number}".encode()) for number in range(1, 6)]


def line(row: Row, **fields: Any) -> dict[str, Any]:
    return {"id": row.identity("c"), "custom_id": "ü" * row.number, "response": None, "error": None} | fields


def ignore(_: Row) -> None:
    pass


def continued(path: Path, note: Callable[[Row], object] = ignore) -> list[int]:
    """The rows that are left, which are answered then."""
    rows, output = iter(ROWS), BatchOutput(path)
    try:
        output.resume(rows, "c", note)
        left = list(rows)
        for row in left:
            output.write(line(row))
    finally:
        output.close()
    return [row.number for row in left]


@given(st.data())
def test_a_file_cut_anywhere_ends_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("out") / "answers.jsonl"
    assert continued(path) == [1, 2, 3, 4, 5]
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    noted: list[int] = []
    left = continued(path, lambda row: noted.append(row.number))
    assert path.read_bytes() == whole
    assert noted == list(range(1, whole[:cut].count(b"\n") + 1)) and noted + left == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("wrong", ['{"id": "batch_req_other"}', "{}", "[]", "no json", "", '"text"'])
def test_other_answers_are_never_continued(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "answers.jsonl"
    before = f"{json.dumps(line(ROWS[0]))}\n{wrong}\n"
    path.write_text(before)
    with pytest.raises(RedipruneError, match="line 2 is not the answer to row 2"):
        continued(path)
    assert path.read_text() == before


@pytest.mark.parametrize("wrong", ["hello", "{", "[1", '{"custom_id": "a", "method"'])
@pytest.mark.parametrize("before", ["", f"{json.dumps(line(ROWS[0]))}\n"])
def test_only_a_part_of_the_next_answer_is_cut(tmp_path: Path, before: str, wrong: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(before + wrong)
    if wrong == "{":  # an answer begins so
        assert len(continued(path)) == 5 - before.count("\n")
        return
    with pytest.raises(RedipruneError, match="is not empty, and line"):
        continued(path)
    assert path.read_text() == before + wrong


def test_more_answers_than_rows_are_of_another_input(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f"{json.dumps(line(row))}\n" for row in [*ROWS, Row(6, b"row 6")]))
    with pytest.raises(RedipruneError, match="line 6"):
        continued(path)


def test_what_is_there_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    body = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}, "rediprune": {"visual_tokens": 9, "kept_tokens": 2}}
    output = BatchOutput(path)
    output.write(line(ROWS[0], response={"status_code": 200, "body": body}))
    output.write(line(ROWS[1], error={"code": "c", "message": "m"}))
    output.close()
    output = BatchOutput(path)
    output.resume(iter(ROWS), "c", ignore)
    output.close()
    found = output.found
    assert (found.requests, found.errors, found.prompt_tokens, found.completion_tokens) == (2, 1, 7, 3)
    assert (found.visual_tokens, found.kept_tokens) == (9, 2)


def _try(path: str, found: Any) -> None:
    try:
        BatchOutput(Path(path)).close()
        found.put("")
    except RedipruneError as error:
        found.put(str(error))


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    held = BatchOutput(tmp_path / "answers.jsonl")
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    for expected in ("another process writes", ""):
        process = context.Process(target=_try, args=(str(tmp_path / "answers.jsonl"), found))
        process.start()
        process.join(60)
        told = found.get(timeout=5)
        assert expected in told and bool(told) == bool(expected)
        if expected:
            held.close()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match="cannot be written"):
        BatchOutput(tmp_path / "none" / "answers.jsonl")


def test_a_full_disk_is_told() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    output = BatchOutput(Path("/dev/full"))
    with pytest.raises(RedipruneError, match="make room"):
        output.write(line(ROWS[0]))
