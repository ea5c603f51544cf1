"""Graphs of bundles as they are rewritten: loaded without their weights, which are read one at a time."""

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from ..runtime.backends.ort import session_options
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


def open_graph(bundle: Bundle, stage: str, model: ir.Model, threads: int = 0) -> ort.InferenceSession:
    """A stage's graph, rewritten in memory, in ONNX Runtime on the CPU: the weights it still has are the bundle's files.

    ONNX Runtime refuses absolute paths of weights: those of `load_graph` are made relative again in `model`.
    """
    folder = bundle.path(bundle.manifest.stages[stage].file).parent
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.location).is_absolute():
            where = Path(tensor.location).relative_to(folder.absolute())
            value.const_value = ir.ExternalTensor(
                where,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=str(tensor.name),
                base_dir=folder,
            )
    options = session_options(threads)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    graph = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
