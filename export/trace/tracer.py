"""Stage → ONNX graph, traced on the meta device: the weights are neither loaded nor needed here."""

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from onnxscript.values import Opset

from ...graphs.selection.onnx_clip_graph import select_clip_model
from ...graphs.selection.onnx_graph import select_model
from ...graphs.stages import Stage
from .replicate_layers import SCOPES
from .tracing_speedups import fast_tracing

OPSET = 24  # the first with TensorScatter, which updates the KV cache in place
IR_VERSION = 11  # onnx writes a newer one by default than engines read (ONNX Runtime 1.31: 13 at most)

_opset = Opset("", OPSET)
# Example sizes: all different and none 0 or 1, which torch.export would take for constants.
_EXAMPLE = {"frames": 6, "kept": 5, "batch": 3, "tokens": 4, "cache": 8, "groups": 7, "windows": 9}
_SELECTIONS = {"select": select_model, "select_clip": select_clip_model}  # written, not traced
# Bounds keep torch.export from specialising a dimension; they are far above any model's.
_LARGEST = 1 << 20


def trace(stage: Stage, dtype: torch.dtype) -> ir.Model:
    """Trace a stage whose module lies on the meta device.

    Returns:
        The graph, its initialisers without values (`Weights.bind` gives them), symbols named as the stage names them.
    """
    if stage.name in _SELECTIONS:
        return _select(stage, dtype)
    example = [
        torch.empty(
            [_EXAMPLE[d] if isinstance(d, str) else d for d in port.shape],
            dtype=port.dtype or dtype,
            device="meta",
        )
        for port in stage.inputs
    ]
    symbols = {name: torch.export.Dim(name, min=1, max=_LARGEST) for name in stage.symbols()}
    dynamic = [{axis: symbols[d] for axis, d in enumerate(port.shape) if isinstance(d, str)} for port in stage.inputs]
    with _quiet(), fast_tracing(len(symbols)), torch.no_grad():
        program = torch.export.export(
            _Positional(stage.module), tuple(example), dynamic_shapes=(tuple(dynamic),), strict=False
        )
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in stage.inputs],
            output_names=[port.name for port in stage.outputs],
            custom_translation_table={torch.ops.rediprune.write_cache.default: _tensor_scatter},
            optimize=False,
            verbose=False,
        )
        assert onnx_program is not None
        model = onnx_program.model
        for name, value in list(model.graph.initializers.items()):
            value.const_value = None  # a meta tensor has no value to fold
            value.name = name.removeprefix("module.")
        optimizer.optimize_ir(model)
    _name_dimensions(model, stage)
    _drop_traces(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.graph.name = "rediprune", stage.name
    return model


class _Positional(torch.nn.Module):
    """Takes any number of inputs, so that one rule of dynamic shapes serves every stage."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.module(*inputs)


def _tensor_scatter(cache: Any, update: Any, write_index: Any) -> Any:
    return _opset.TensorScatter(cache, update, write_index, axis=2, mode="linear")


def _select(stage: Stage, dtype: torch.dtype) -> ir.Model:
    channels, depth = stage.inputs[0].shape[2], stage.inputs[1].shape[1]
    assert isinstance(channels, int) and isinstance(depth, int)
    model = _SELECTIONS[stage.name](channels, depth, np.float16 if dtype == torch.float16 else np.float32)
    _name_dimensions(model, stage)
    model.producer_name = "rediprune"
    return model


def _name_dimensions(model: ir.Model, stage: Stage) -> None:
    """Give the graph's inputs and outputs the stage's symbols in place of the tracer's."""
    for ports, values in ((stage.inputs, model.graph.inputs), (stage.outputs, model.graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.shape = ir.Shape(port.shape)


def _drop_traces(model: ir.Model) -> None:
    """Drop the tracer's notes on each node, source paths of the machine and bulk; where it is from stays in memory."""
    for node in model.graph.all_nodes():
        node.meta[SCOPES] = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes on packages it does not need and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
