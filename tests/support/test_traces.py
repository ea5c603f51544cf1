"""A bundle of kept graphs is the bundle that an export outside the tests makes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle


@pytest.mark.usefixtures("fresh_traces")
def test_a_kept_graph_is_as_good_as_one_just_traced(
    checkpoint_of: Callable[[str], Path], bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    kept = bundle_of("llava")
    fresh = export_bundle(Checkpoint.open(str(checkpoint_of("llava"))), tmp_path / "llava").folder
    graphs = sorted(file.relative_to(fresh) for file in fresh.rglob("*.onnx"))
    assert len(graphs) == 6
    for graph in graphs:
        assert (fresh / graph).read_bytes() == (kept / graph).read_bytes(), graph
