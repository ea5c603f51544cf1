"""The checkpoint's weights: found by their safetensors headers, bound to a graph, read only when written.

Nothing here holds more than one tensor in memory.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..runtime.bundle import file_sha256
from ..runtime.errors import RedipruneError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """Where a weight lies: file, its key there, and its shape."""

    file: Path
    key: str
    shape: tuple[int, ...]

    def load(self) -> Tensor:
        with safe_open(self.file, framework="pt") as shard:
            return shard.get_tensor(self.key)


class Weights:
    """The weights of a checkpoint folder under the names of the transformers model built from its config."""

    def __init__(self, folder: Path, model: nn.Module, needed: Iterable[Tensor]):
        """Index the shards and match them to `model` (on any device, meta included).

        Args:
            folder: the checkpoint.
            model: built from its config.
            needed: the model's parameters that must be there.

        Raises:
            RedipruneError: no safetensors, a missing, truncated or inconsistent shard, or weights that are not those
                of the model.
        """
        self.files = weight_files(folder)
        rename = _renamer(model)
        self.stored = {rename(tensor.key): tensor for file in self.files for tensor in _read_header(file)}
        self._owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._owners.setdefault(id(parameter), []).append(name)
        missing = []
        for parameter in needed:
            names = self._owners[id(parameter)]
            found = next((self.stored[name] for name in names if name in self.stored), None)
            if found is None:
                missing.append(names[0])
            elif found.shape != tuple(parameter.shape):
                raise RedipruneError(
                    f"weight '{found.key}' in '{found.file}' has shape {list(found.shape)}, but config.json asks for "
                    f"{list(parameter.shape)}; the weights and the config are of different models: download both again"
                )
        if missing:
            raise RedipruneError(
                f"checkpoint '{folder}' lacks {len(missing)} weights of its config, the first being '{missing[0]}'; "
                "download it again, or check that config.json belongs to these weights"
            )

    def of(self, parameter: Tensor) -> StoredTensor:
        """The stored tensor of one of the model's parameters (tied parameters share one)."""
        return next(self.stored[name] for name in self._owners[id(parameter)] if name in self.stored)

    def sha256(self) -> dict[str, str]:
        return {file.name: file_sha256(file) for file in self.files}

    def load(self, module: nn.Module, buffers: dict[int, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Parameters and buffers of a stage by name, for `functional_call(…, tie_weights=False)`."""
        distinct = {id(p): self.of(p).load().to(dtype) for p in module.parameters()}
        state = {name: distinct[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
        return state | {name: buffers[id(b)] for name, b in module.named_buffers(remove_duplicate=False)}

    def bind(self, model: ir.Model, module: nn.Module, buffers: dict[int, Tensor], dtype: torch.dtype) -> None:
        """Give every initialiser of a stage's graph its value, read and converted only when the graph is saved."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        constants = dict(module.named_buffers(remove_duplicate=False))
        for name, value in model.graph.initializers.items():
            if name in parameters:
                value.const_value = _lazy(self.of(parameters[name]), dtype, name)
            elif name in constants:
                value.const_value = ir.tensor(buffers[id(constants[name])].numpy(), name=name)
        fold_transposes(model)


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files.

    Raises:
        RedipruneError: there are none, or the index names files that are missing.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise RedipruneError(f"'{index}' is damaged; download the checkpoint again") from error
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise RedipruneError(
                f"checkpoint '{folder}' lacks {len(absent)} of {len(names)} weight files, the first being '{absent[0]}'; "
                "download the rest"
            )
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if list(folder.glob("*.bin")):
        raise RedipruneError(
            f"checkpoint '{folder}' has its weights in .bin files; convert them once with transformers: "
            "AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(folder)"
        )
    raise RedipruneError(f"checkpoint '{folder}' has no weights: neither {SINGLE} nor {INDEX} is there")


def _read_header(file: Path) -> list[StoredTensor]:
    """Entries of a safetensors file, after checking that the file is as long as its header says."""
    size = file.stat().st_size
    damaged = RedipruneError(f"weight file '{file}' is truncated or damaged; download it again")
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise damaged
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise damaged
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            entries = [StoredTensor(file, key, tuple(entry["shape"])) for key, entry in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged from error
    if 8 + length + end != size:
        raise damaged
    return entries


def _renamer(model: Any) -> Callable[[str], str]:
    """From a checkpoint's key to the model's own name: older checkpoints use other ones (transformers' renamings)."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = model.state_dict()
    return lambda key: rename_source_key(key, renamings, converters, model.base_model_prefix, state)[0]


def _lazy(stored: StoredTensor, dtype: torch.dtype, name: str, transpose: bool = False) -> ir.LazyTensor:
    shape = stored.shape[::-1] if transpose else stored.shape
    kind = ir.DataType.FLOAT16 if dtype == torch.float16 else ir.DataType.FLOAT

    def read() -> ir.TensorProtocol:
        tensor = stored.load().to(dtype)
        return ir.tensor((tensor.T if transpose else tensor).contiguous().numpy(), name=name)

    lazy = ir.LazyTensor(read, dtype=kind, shape=ir.Shape(shape), name=name)
    lazy.meta["stored"] = (stored, dtype)
    return lazy


def fold_transposes(model: ir.Model) -> None:
    """Store the weights of linear layers the way MatMul reads them, so that no engine transposes them at load."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        tensor = source.const_value
        if not (isinstance(tensor, ir.LazyTensor) and "stored" in tensor.meta and len(tensor.shape) == 2):
            continue
        stored, dtype = tensor.meta["stored"]
        name = f"{source.name}.T"
        if name not in graph.initializers:
            folded = _lazy(stored, dtype, name, transpose=True)
            graph.register_initializer(ir.Value(name=name, type=source.type, shape=folded.shape, const_value=folded))
        value = graph.initializers[name]
        result.replace_all_uses_with(value)
    RemoveUnusedNodesPass()(model)
