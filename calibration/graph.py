"""Graphs of bundles as they are rewritten: loaded without their weights, which are read one at a time."""

from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle import Bundle


def load_graph(bundle: Bundle, stage: str) -> ir.Model:
    """A stage's graph, its weights readable.

    They may lie in hard links to the checkpoint's files, which onnx_ir refuses to read as a possible attack
    (`ExternalTensor._check_path_containment`, "Check 3", onnx_ir/_core.py) unless the path comes from the program: it
    does here, and the bundle's hashes were compared.
    """
    model = ir.load(bundle.path(bundle.manifest.stages[stage].file))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            where = Path(tensor.path).absolute()
            value.const_value = ir.ExternalTensor(
                where, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(tensor.name)
            )
    return model
