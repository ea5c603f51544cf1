"""The script for machines with a GPU, run over ONNX Runtime on the CPU: what runs is measured, what does not is listed."""

import json
import sys

import pytest
import torch
from rediprune.export import gpu_measurements
from rediprune.runtime import Pipeline
from rediprune.runtime.preprocess import load_image

pytestmark = pytest.mark.slow  # it validates and times every backend that is here


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_measurements", *map(str, arguments)])
    code = gpu_measurements.main()
    return code, capsys.readouterr()


def test_what_runs_is_measured_and_what_does_not_is_listed(bundle_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rediprune.runtime.gpu._LIBRARY", "libno-such-driver.so")
    backends = ["--backends", "ort,tensorrt-rtx", "--runs", 2, "--markdown", tmp_path / "page.md"]
    code, printed = run(monkeypatch, capsys, bundle_of("llava"), *backends)
    result = json.loads(printed.out.splitlines()[-1])
    assert code == 0 and result["checks"]["ort"]["passed"]
    equal, asked = result["checks"]["ort"]["equal_answers"]
    assert equal == asked > 1
    assert "--backend ort" in result["checks"]["tensorrt-rtx"]["refused"]
    rows = result["milliseconds"]
    assert [f"ort, keep {keep:g}" in rows for keep in gpu_measurements.KEEPS] == [True] * 4
    for row in (row for name, row in rows.items() if name.startswith("ort")):
        assert sum(row[stage] for stage in gpu_measurements.STAGES) > 0 and row["token"] > 0
        assert 0 < row["time_to_first_token"] <= row["slowest"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert {f"eager on {device}, unpruned", f"eager on {device}, keep 0.1 as released"} <= set(rows)
    page = (tmp_path / "page.md").read_text()
    assert "| ort | equal;" in page and "| tensorrt-rtx | does not run here: backend" in page


@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_the_eager_peer_answers_as_the_bundle_does(bundle_of, photo, keep):
    eager = gpu_measurements.Eager(bundle_of("llava"))
    eager.first_token(load_image(photo), keep)
    pipeline = Pipeline.load(bundle_of("llava"))
    ours = pipeline.generate(gpu_measurements.QUESTION, [photo], keep=keep, max_new_tokens=1, temperature=0.0)
    assert ours.token_ids == [eager.token]


@pytest.mark.parametrize(
    ("bundle", "backends", "says"),
    [("nowhere", "ort", "is not a bundle"), ("llava_next_video", "ort", "sees images in tiles")],
)
def test_bad_input_is_one_line(bundle_of, monkeypatch, capsys, bundle, backends, says):
    folder = bundle if bundle == "nowhere" else bundle_of(bundle)
    code, printed = run(monkeypatch, capsys, folder, "--backends", backends)
    assert code == 2 and says in printed.err and printed.err.count("\n") == 1
