"""The script for machines with a GPU, run over ONNX Runtime on the CPU: what runs is measured, what does not is listed."""

import json
import sys

import pytest
import torch
from rediprune.export.bench.gpu import gpu_measurements

pytestmark = pytest.mark.slow  # it validates and times every backend that is here


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_measurements", *map(str, arguments)])
    code = gpu_measurements.main()
    return code, capsys.readouterr()


def test_what_runs_is_measured_and_what_does_not_is_listed(bundle_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rediprune.runtime.backends.gpu._LIBRARY", "libno-such-driver.so")
    backends = ["--backends", "ort,tensorrt-rtx", "--runs", 2, "--markdown", tmp_path / "page.md"]
    code, printed = run(monkeypatch, capsys, bundle_of("llava"), *backends)
    result = json.loads(printed.out.splitlines()[-1])
    assert code == 0 and result["checks"]["ort"]["passed"]
    equal, asked = result["checks"]["ort"]["equal_answers"]
    assert equal == asked > 1
    assert "--backend ort" in result["checks"]["tensorrt-rtx"]["refused"]
    rows = {(row["contender"], row["keep"]): row for row in result["milliseconds"]}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert set(rows) == {(name, keep) for name in ("ort", f"eager on {device}") for keep in gpu_measurements.KEEPS}
    for (name, _), row in rows.items():
        assert 0 < row["time_to_first_token"] <= row["slowest"] and row["token"] > 0
        assert row["tokens_as_eager"] == gpu_measurements.TOKENS
        assert name != "ort" or sum(row[stage] for stage in gpu_measurements.TIMED_STAGES) > 0
    page = (tmp_path / "page.md").read_text()
    assert "| ort | equal;" in page and "| tensorrt-rtx | does not run here: backend" in page


def test_without_the_check_times_are_taken_all_the_same(bundle_of, monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, bundle_of("llava"), "--backends", "ort", "--runs", 1, "--no-check")
    assert code == 0 and json.loads(printed.out.splitlines()[-1])["checks"] == {"ort": {}}
    assert "| ort | runs; not validated in this run |" in printed.out


@pytest.mark.parametrize(
    ("bundle", "backends", "says"),
    [("nowhere", "ort", "is not a bundle"), ("llava_next_video", "ort", "sees images in tiles")],
)
def test_bad_input_is_one_line(bundle_of, monkeypatch, capsys, bundle, backends, says):
    folder = bundle if bundle == "nowhere" else bundle_of(bundle)
    code, printed = run(monkeypatch, capsys, folder, "--backends", backends)
    assert code == 2 and says in printed.err and printed.err.count("\n") == 1
