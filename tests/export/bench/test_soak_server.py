"""A short soak, which must see what is wrong too."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.bench.soak_server import Soak, main


@pytest.mark.process
def test_a_short_soak(
    bundle_of: Callable[[str], Path], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "soak.json"
    arguments = [str(bundle_of("llava")), str(bundle_of("llava_next_video")), "--clip", str(clip), "-o", str(out)]
    arguments += ["--requests", "120", "--cases", "12", "--clients", "6"]
    monkeypatch.setattr("sys.argv", ["soak", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    found = json.loads(out.read_text())
    assert found["requests"] == 120 and found["wrong"] == []
    assert {"bad 400", "left"} < set(found["outcomes"]) and any(kind.startswith("clip") for kind in found["outcomes"])
    assert left.value.code in (0, 1)  # so few requests are no measure of the memory


def test_growth_is_that_of_the_last_half() -> None:
    flat = Soak(memory=[(100, 50), (200, 100), (300, 101), (400, 100)])
    assert flat.growth == pytest.approx(0.01) and flat.good
    leaks = Soak(memory=[(100, 100), (200, 100), (300, 103), (400, 106)])
    assert leaks.growth == pytest.approx(0.06) and not leaks.good
    assert not Soak(wrong=["x"], memory=[(1, 1)]).good
