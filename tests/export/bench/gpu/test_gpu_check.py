"""The GPU programs where there is no GPU: they start, refuse in one line, and write the pages that are under docs/."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rediprune.export.bench.gpu import gpu_check, gpu_correctness, gpu_measurements, gpu_pipeline, gpu_report
from rediprune.graphs.selection.as_released import release_select
from rediprune.graphs.selection.cuda.launcher import GpuUnavailable

MEASUREMENTS = Path(__file__).parents[4] / "docs" / "measurements"
PROGRAMS = (gpu_check, gpu_pipeline, gpu_measurements)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    assert "--markdown" in capsys.readouterr().out


@pytest.mark.parametrize("program", [gpu_check, gpu_pipeline])
def test_without_a_gpu_it_is_one_line(program, monkeypatch, capsys):
    def unavailable():
        raise GpuUnavailable("GPU 0 cannot be used:\n check nvidia-smi")

    monkeypatch.setattr(program, "load_kernels", unavailable)
    monkeypatch.setattr(sys, "argv", ["program"])
    assert program.main() == 2
    assert capsys.readouterr().err == "error: GPU 0 cannot be used: check nvidia-smi\n"


@pytest.mark.parametrize(
    ("program", "name"),
    [(gpu_check, "selection-kernel"), (gpu_pipeline, "pipeline-7b"), (gpu_measurements, "gpu-7b")],
)
def test_pages_under_docs_are_what_the_programs_write(program, name):
    result = json.loads((MEASUREMENTS / f"{name}.json").read_text())
    shown = (MEASUREMENTS / f"{name}.md").read_text().splitlines()
    rows = [line for part in program.page(result) for line in part.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert [row for row in rows if row not in shown] == []


def test_reports_are_written_where_asked(tmp_path, capsys):
    parser = gpu_check.argparse.ArgumentParser()
    gpu_report.add_output_options(parser)
    arguments = parser.parse_args(["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")])
    gpu_report.write_report({"a": 1}, [gpu_report.table_head("x", "y"), "| 1 | 2 |"], arguments)
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert (tmp_path / "r.md").read_text() == "| x | y |\n|---|---|\n| 1 | 2 |\n"
    assert "| 1 | 2 |" in capsys.readouterr().out


def test_the_environment_names_what_is_installed():
    machine = gpu_report.environment("numpy", "no-such-distribution")
    assert machine["torch"] == torch.__version__ and "numpy" in machine and "GPU" in machine
    assert "no-such-distribution" not in machine
    assert gpu_report.in_one_line({"GPU": "none", "torch": "2"}) == "GPU none, torch 2"


def test_the_gap_is_nothing_for_the_releases_choice_and_what_another_costs():
    random = torch.Generator().manual_seed(0)
    for kind in gpu_correctness.KINDS[:3]:
        x = gpu_correctness.features(kind, 4, 36, 16, random)
        query = torch.randn(16, generator=random)
        relevance, similarity = gpu_correctness.exact_scores(x, query)
        kept = torch.stack(release_select(x.double(), query.double(), 8, 0.5))
        assert not gpu_correctness.first_gap(relevance, similarity, kept, 0.5).any()
        best = relevance.argmax(dim=1)
        others = torch.stack([torch.tensor([i for i in range(9) if i != int(first)][:8]) for first in best])
        gaps = gpu_correctness.first_gap(relevance, similarity, others, 0.5)
        within = relevance.gather(1, others).amax(dim=1)
        assert torch.equal(gaps, relevance.amax(dim=1) - within)
