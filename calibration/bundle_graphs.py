"""Graphs of bundles as they are rewritten: loaded without their weights, which are read one at a time."""

import os
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from ..runtime.backends.ort import session_options
from ..runtime.bundle import Bundle


def load_graph(bundle: Bundle, stage: str) -> ir.Model:
    """A stage's graph, its weights readable.

    onnx_ir keeps reads of weights within the graph's folder, and refuses files of more than one name as a possible attack
    (`ExternalTensor._check_path_containment`, "Check 3", onnx_ir/_core.py). The checkpoint's weight files are such, hard
    links; so these alone are read by their own path, each of them listed in the manifest and compared with its hash.

    Raises:
        RedipruneError: the graph has weights in a file that the manifest does not list with it.
    """
    model = ir.load(bundle.path(bundle.manifest.stages[stage].file))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            path = bundle.path(_data_file(bundle, stage, tensor))
            if path.stat().st_nlink > 1:
                value.const_value = _with_location(tensor, Path(os.path.abspath(path)))
    return model


def open_graph(bundle: Bundle, stage: str, model: ir.Model, threads: int = 0) -> ort.InferenceSession:
    """A stage's graph, rewritten in memory, in ONNX Runtime on the CPU: the weights it still has are the bundle's files.

    ONNX Runtime refuses absolute paths of weights: those of `load_graph` are made relative again in `model`.

    Raises:
        RedipruneError: the graph has weights in a file that the manifest does not list with it.
    """
    folder = bundle.path(bundle.manifest.stages[stage].file).parent
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            if os.path.isabs(tensor.location):
                tensor = _with_location(tensor, Path(tensor.location).relative_to(os.path.abspath(folder)), folder)
                value.const_value = tensor
            _data_file(bundle, stage, tensor)
    options = session_options(threads, has_int8_blocks(model))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    graph = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def has_int8_blocks(model: ir.Model) -> bool:
    """Whether a graph has weights in INT8 blocks, as `Int8WeightPass` writes them."""
    return any(
        node.op_type == "DequantizeLinear"
        and "block_size" in node.attributes
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.INT8
        for node in model.graph
    )


def _data_file(bundle: Bundle, stage: str, tensor: ir.ExternalTensor) -> str:
    spec, location = bundle.manifest.stages[stage], tensor.location
    location = location.as_posix() if isinstance(location, Path) else str(location)  # a graph's own is text, as written
    return bundle.data_file(spec.file, location, spec.files)


def _with_location(tensor: ir.ExternalTensor, location: Path, base: Path | str = "") -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=str(tensor.name),
        base_dir=base,
    )
