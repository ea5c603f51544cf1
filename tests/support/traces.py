"""Traced graphs, kept: tracing takes seconds a stage, and tests of the export trace the same few stages over and over.

A graph is found by the sources of `graphs/` and `export/trace/`, the libraries' versions, and everything of a stage
that shows in its graph. What a test gets is as if just traced: `test_traces.py` holds it to that.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from rediprune.export.trace import tracer
from rediprune.export.trace.replicate_layers import SCOPES
from rediprune.graphs.stages import Stage

from .content_cache import ContentCache, digest, sources_digest

Trace = Callable[[Stage, torch.dtype], ir.Model]
FRESH: Trace = tracer.trace

_OF_EVERY_MODULE = set(vars(torch.nn.Module())) - {"training"}
_INITIALIZERS = "initializers"  # their names, in order: those without values are not written with the graph


@contextmanager
def tracing_by(trace: Trace) -> Iterator[None]:
    """Have all modules of the export trace by another function."""
    before = tracer.trace
    holders = [
        m for name, m in list(sys.modules.items()) if name.startswith("rediprune.") and vars(m).get("trace") is before
    ]
    for module in holders:
        vars(module)["trace"] = trace
    try:
        yield
    finally:
        for module in holders:
            vars(module)["trace"] = before


def remembered(trace: Trace, kept: ContentCache) -> Trace:
    """`trace`, asked once a stage."""

    def traced(stage: Stage, dtype: torch.dtype) -> ir.Model:
        def make(folder: Path) -> None:
            save(trace(stage, dtype), folder / "graph.onnx")

        return load(kept.folder("trace", key_of(stage, dtype), make) / "graph.onnx")

    return traced


def key_of(stage: Stage, dtype: torch.dtype) -> str:
    """Hash of all that a stage's graph depends on; the values of its weights are no part of it."""
    ports = [(port.name, port.shape, str(port.dtype)) for port in (*stage.inputs, *stage.outputs)]
    tensors = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in stage.module.state_dict().items()]
    settings = [(path, type(module).__qualname__, _settings(module)) for path, module in stage.module.named_modules()]
    sources = sources_digest("graphs", "export/trace", "tests/support/traces.py")
    return digest(sources, stage.name, str(dtype), ports, tensors, settings, str(stage.module))


def _settings(module: torch.nn.Module) -> list[tuple[str, str]]:
    """What a module holds besides weights and modules: numbers, lists of layers, functions by their names, a config."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    config: Any = own.pop("config", None)
    if config is not None:
        values = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
        own["config"] = json.dumps(values, default=str, sort_keys=True)
        own["attention"] = config._attn_implementation
    own = {name: sorted(map(str, value)) if isinstance(value, set) else value for name, value in own.items()}
    return [(name, re.sub(" at 0x[0-9a-f]+", "", repr(value))) for name, value in sorted(own.items())]


def save(model: ir.Model, path: Path) -> None:
    """Write a traced graph, with what the export reads of it besides: its empty initialisers and its nodes' scopes."""
    model = model.clone()
    graph = model.graph
    model.metadata_props[_INITIALIZERS] = json.dumps(list(graph.initializers))
    for value in [value for value in graph.initializers.values() if value.const_value is None]:
        del graph.initializers[value.name]  # without a value it would not be written; as an input it is
        graph.inputs.append(value)
    for node in graph.all_nodes():
        if SCOPES in node.meta:
            node.metadata_props[SCOPES] = json.dumps(node.meta[SCOPES])
    ir.save(model, path)


def load(path: Path) -> ir.Model:
    """Read a graph that `save` wrote."""
    model = ir.load(path)
    graph = model.graph
    names = json.loads(model.metadata_props.pop(_INITIALIZERS))
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    graph.inputs[:] = [value for value in graph.inputs if value.name not in names]
    graph.initializers.clear()
    for name in names:
        graph.initializers.add(values[name])
    for node in graph.all_nodes():
        if SCOPES in node.metadata_props:
            node.meta[SCOPES] = json.loads(node.metadata_props.pop(SCOPES))
    return model
