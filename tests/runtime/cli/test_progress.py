"""What long work says while it goes on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
from rediprune.runtime.cli import progress


@pytest.fixture
def _a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, and reports at 1, 16, 20 and 40 seconds, those at 16 and 40 told."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    times = iter([0.0, 1.0, 16.0, 16.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))


@pytest.mark.usefixtures("_a_log_file")
@pytest.mark.parametrize("silent", [False, True])
def test_where_bars_cannot_move_a_line_says_what_is_done(silent: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage_progress(silent) as report:
        for at, what in enumerate(("vision fp32", "vision int8 [q]", "language fp32", "language int8")):
            report("timing", what, at / 4)
        before = capsys.readouterr()
    assert before.err == ("" if silent else "timing: vision int8 [q] (25%)\ntiming: language int8 (75%)\n")
    after = capsys.readouterr()
    assert ("language int8" in after.err) is not silent and before.out == after.out == ""


@pytest.mark.usefixtures("_a_log_file")
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    ("bar", "more", "lines"),
    [
        (progress.one_bar, None, ["[ort] keep 0.15: 700 of 1,200", "[ort] keep 0.15: 900 of 1,200"]),
        (
            progress.batch_bar,
            SimpleNamespace(completion_tokens=4096, errors=2),
            ["700 of 1,200 rows, 4,096 tokens, 2 errors", "900 of 1,200 rows, 4,096 tokens, 2 errors"],
        ),
    ],
)
def test_one_bar_too_becomes_lines_in_a_log_file(
    bar: Callable[[bool], AbstractContextManager[Callable[..., None]]],
    more: Any,
    lines: list[str],
    silent: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bar(silent) as report:
        for at in (600, 700, 800, 900):
            if more is None:
                report("[ort] keep 0.15", at, 1200)
            else:
                report(at, 1200, more)
        told = capsys.readouterr()
    assert told.err.splitlines() == ([] if silent else lines) and told.out == ""


@pytest.mark.usefixtures("_a_log_file")
def test_a_terminal_gets_bars_and_no_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress.one_bar(hidden=False) as report:
        for at in (600, 700, 800, 900):
            report("[ort] keep 0.15", at, 1200)
    assert ": 900 of 1,200" not in capsys.readouterr().err
