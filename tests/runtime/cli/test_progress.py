"""What long work says while it goes on."""

from types import SimpleNamespace

import pytest
from rediprune.runtime.cli import progress


@pytest.mark.parametrize("silent", [False, True])
def test_where_bars_cannot_move_a_line_says_what_is_done(
    silent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    times = iter([0.0, 1.0, 16.0, 16.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with progress.stage_progress(silent) as report:
        for at, what in enumerate(("vision fp32", "vision int8 [q]", "language fp32", "language int8")):
            report("timing", what, at / 4)
        before = capsys.readouterr()
    assert before.err == ("" if silent else "timing: vision int8 [q] (25%)\ntiming: language int8 (75%)\n")
    after = capsys.readouterr()
    assert ("language int8" in after.err) is not silent and before.out == after.out == ""
