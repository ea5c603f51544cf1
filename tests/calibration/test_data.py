"""Samples of a folder or a JSONL: what is taken, and what is passed over."""

import json
from pathlib import Path

import pytest
from PIL import Image
from rediprune.calibration.data import open_data
from rediprune.runtime.errors import RedipruneError

APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X        "


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def names(folder: Path) -> list[str]:
    data = open_data(folder, 50, 0, True, folder / "made")
    return sorted(str(q.media.relative_to(folder)) for q in {*data.samples, *data.held_out})


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.JPG", "d.png"):
        picture(tmp_path / name)
    for name in ("._a.png", "b/._c.JPG", ".hidden.png", ".thumbnails/d.png", "__MACOSX/._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(APPLE_DOUBLE)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "page.eps").write_text("%!PS")
    assert names(tmp_path) == ["a.png", "b/c.JPG", "d.png"]


def test_a_folder_of_nothing_but_hidden_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "._a.png").write_bytes(APPLE_DOUBLE)
    with pytest.raises(RedipruneError, match="holds no images or videos"):
        names(tmp_path)


def test_a_hidden_folder_may_be_given_itself(tmp_path: Path) -> None:
    picture(tmp_path / ".cache" / "a.png")
    assert names(tmp_path / ".cache") == ["a.png"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_jsonl_as_windows_writes_it(tmp_path: Path, mark: str, ends: str) -> None:
    picture(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": f"What\u2028is {at}?", "answer": "red"} for at in range(3)]
    text = mark + ends.join([*(json.dumps(line, ensure_ascii=False) for line in lines), ""])
    (tmp_path / "d.jsonl").write_bytes(text.encode("utf-8"))
    data = open_data(tmp_path / "d.jsonl", 2, 0, True, tmp_path / "made")
    assert {q.question for q in (*data.samples, *data.held_out)} == {line["question"] for line in lines}


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"image": "' + "x" * 5000 + '", "question": "?", "answer": "!"}', "\ufffe"]
)
def test_odd_lines_are_refused_by_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text("\n" + line, encoding="utf-8")
    with pytest.raises(RedipruneError, match="line 2 of"):
        open_data(tmp_path / "d.jsonl", 2, 0, True, tmp_path / "made")
