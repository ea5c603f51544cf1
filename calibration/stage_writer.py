"""Stages written into a bundle that is being made."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle import WEIGHTS, Bundle, StageSpec, TensorSpec, file_sha256
from .bundle_graphs import load_graph


def save_stage(
    model: ir.Model,
    spec: StageSpec,
    precision: str,
    folder: Path,
    progress: Callable[[float], None] | None = None,
) -> StageSpec:
    """Write a stage's rewritten graph and its weights; an unfinished one leaves nothing behind.

    Args:
        model: the graph.
        spec: of the stage that it was made of.
        precision: the scheme it is in now.
        folder: the bundle being made, with its `onnx/`.
        progress: told which fraction of the weights is written.

    Returns:
        What the stage has become.
    """
    path = folder / spec.file
    data = path.with_name(path.name + ".data")

    def written(tensor: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
        if progress is not None:
            progress(info.index / max(info.total, 1))

    try:
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        ir.save(model, path, external_data=data.name, callback=written)
        if not data.stat().st_size:  # a stage without weights
            data.unlink()
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        raise
    tensors = (value.const_value for value in model.graph.initializers.values())
    return StageSpec(
        file=spec.file,
        files={f"onnx/{file.name}": file_sha256(file) for file in (path, data) if file.is_file()},
        weight_bytes=sum(tensor.nbytes for tensor in tensors if tensor is not None),
        precision=precision,
        inputs=[_typed(port, value) for port, value in zip(spec.inputs, model.graph.inputs, strict=True)],
        outputs=[_typed(port, value) for port, value in zip(spec.outputs, model.graph.outputs, strict=True)],
    )


def copy_stage(bundle: Bundle, stage: str, folder: Path) -> StageSpec:
    """Take a stage over as it is: copied, or written anew with weights of its own where it refers to the checkpoint's.

    Not linked: these files hold the other stages' weights too, and onnx_ir reads no file of two names.
    """
    spec = bundle.manifest.stages[stage]
    if any(file.startswith(f"{WEIGHTS}/") for file in spec.files):
        return save_stage(load_graph(bundle, stage), spec, spec.precision, folder)
    for file in spec.files:
        shutil.copyfile(bundle.path(file), folder / file)
    return spec


def _typed(port: TensorSpec, value: ir.Value) -> TensorSpec:
    """An input or output with the dtype that it has in the graph."""
    return port.model_copy(update={"dtype": value.dtype.numpy().name} if value.dtype is not None else {})
