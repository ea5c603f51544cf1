"""Graphs of bundles as they are rewritten: loaded without their weights, which are read one at a time."""

from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle import Bundle


def load_graph(bundle: Bundle, stage: str) -> ir.Model:
    """A stage's graph, its weights readable.

    Bundles share files by hard links, which onnx_ir refuses to read as a possible attack (`ExternalTensor`, "Check 3",
    onnx_ir/_core.py) unless a path comes from the program: it does here, and the bundle's hashes were compared.
    """
    path = bundle.path(bundle.manifest.stages[stage].file)
    model = ir.load(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            where = Path(tensor.path).absolute()
            value.const_value = ir.ExternalTensor(
                where, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name
            )
    return model
