"""What makes tracing faster changes no graph."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from onnxscript.values import TracedOnnxFunction
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.trace import tracer
from rediprune.export.trace.tracing_speedups import fast_tracing


@pytest.mark.trace
@pytest.mark.parametrize("name", ["vision", "language"])  # of one dynamic dimension, and of several
def test_graphs_are_those_of_the_libraries_left_alone(
    name: str, checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Checkpoint.open(str(checkpoint_of("llava"))).skeleton("fp32").stage(name)
    assert (len(stage.symbols()) > 1) is (name == "language")
    fast = str(tracer.trace(stage, torch.float32))
    monkeypatch.setattr(tracer, "fast_tracing", lambda symbols: nullcontext())
    assert str(tracer.trace(stage, torch.float32)) == fast


def test_the_libraries_are_left_as_they_were() -> None:
    config = torch._dynamo.config
    before = TracedOnnxFunction.function_ir, config.fake_tensor_cache_enabled
    with fast_tracing(3), fast_tracing(1):
        assert TracedOnnxFunction.function_ir is not before[0] and not config.fake_tensor_cache_enabled
    assert (TracedOnnxFunction.function_ir, config.fake_tensor_cache_enabled) == before
