"""The checkpoint's weights: found by their safetensors headers and bound to a graph, by reference or as copies.

By reference, a graph's initialiser is a place in the checkpoint's own file (zero-copy). As a copy, it is read,
converted and written when the graph is saved. Nothing here holds more than one tensor in memory.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ...runtime.errors import RedipruneError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# What safetensors calls the types that weights may have, and what ONNX calls them.
_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
_ONNX = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a weight lies: file, its key there, its type and shape, and its bytes: offset in the file and length."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

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
            RedipruneError: no safetensors, a missing, truncated or inconsistent shard, weights of a type that is not
                taken, or weights that are not those of the model.
        """
        index = weight_index(folder)
        self.files = [folder / name for name in index]
        rename = _renamer(model)
        self.stored = {}
        for file, keys in zip(self.files, index.values(), strict=True):
            found = {tensor.key: tensor for tensor in _read_header(file)}
            for key in found if keys is None else keys:
                if key not in found:
                    raise RedipruneError(
                        f"'{folder / INDEX}' says that '{key}' is in '{file.name}', and it is not; the weight files and "
                        "the index are of different downloads: download the checkpoint again"
                    )
                self.stored[rename(key)] = found[key]
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
            elif found.dtype not in _DTYPES:
                raise RedipruneError(
                    f"weight '{found.key}' in '{found.file}' is stored as {found.dtype}; weights must be bfloat16, float16 "
                    "or float32: give the checkpoint as it was before it was quantised"
                )
        if missing:
            raise RedipruneError(
                f"checkpoint '{folder}' lacks {len(missing)} weights of its config, the first being '{missing[0]}'; "
                "download it again, or check that config.json belongs to these weights"
            )

    def of(self, parameter: Tensor) -> StoredTensor:
        """The stored tensor of one of the model's parameters (tied parameters share one)."""
        return next(self.stored[name] for name in self._owners[id(parameter)] if name in self.stored)

    def supplied(self, module: nn.Module, buffers: dict[int, Tensor], dtype: torch.dtype) -> "_Supply":
        """While entered, a module on the meta device computes on the CPU in float32, its weights rounded to `dtype`."""
        return _Supply(self, module, buffers, dtype)

    def bind(
        self, model: ir.Model, module: nn.Module, buffers: dict[int, Tensor], dtype: torch.dtype, place: str | None
    ) -> list[Path]:
        """Give every initialiser of a stage's graph its value.

        Args:
            model: the traced graph, its initialisers without values.
            module: the stage's module.
            buffers: values of the module's buffers by `id`.
            dtype: of the graph's weights.
            place: folder of the checkpoint's files as seen from the graph: matrices refer to their bytes there, with
                a Cast behind them where they are stored in another type. None copies: every weight is read, converted
                and transposed when the graph is saved.

        Returns:
            The checkpoint's files that the graph refers to.
        """
        parameters = dict(module.named_parameters(remove_duplicate=False))
        constants = dict(module.named_buffers(remove_duplicate=False))
        used: dict[Path, None] = {}
        for name, value in list(model.graph.initializers.items()):
            if name in constants:
                value.const_value = ir.tensor(buffers[id(constants[name])].numpy(), name=name)
            elif name in parameters:
                stored = self.of(parameters[name])
                if place is None or len(stored.shape) < 2:  # biases and norms are small: they go into the graph's file
                    value.const_value = _lazy(stored, dtype, name)
                else:
                    _refer(model.graph, value, stored, dtype, place)
                    used[stored.file] = None
        if place is None:
            fold_transposes(model)
        return list(used)


class _Supply(TorchFunctionMode):
    """Gives every torch function a parameter's value in place of the parameter, read at that moment and then dropped."""

    def __init__(self, weights: Weights, module: nn.Module, buffers: dict[int, Tensor], dtype: torch.dtype):
        super().__init__()
        self.weights, self.buffers, self.dtype = weights, buffers, dtype
        self.owned = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        supply = self._blank if func.__name__ == "__get__" else self._value  # shape, dtype and the like need no value
        return func(*tree_map(supply, args), **tree_map(supply, kwargs or {}))

    def _blank(self, thing: Any) -> Any:
        if id(thing) not in self.owned:
            return thing
        return torch.empty_like(thing, device="cpu", dtype=torch.float32 if thing.is_floating_point() else thing.dtype)

    def _value(self, thing: Any) -> Any:
        if id(thing) not in self.owned:
            return thing
        # Half-precision weights, single-precision arithmetic: PyTorch has no fast half arithmetic on CPUs.
        stored = self.buffers[id(thing)] if id(thing) in self.buffers else self.weights.of(thing).load().to(self.dtype)
        return stored.float() if stored.is_floating_point() else stored


def weight_index(folder: Path) -> dict[str, list[str] | None]:
    """The checkpoint's safetensors files, each with the keys that the index promises there; None is all it has.

    Raises:
        RedipruneError: there are none, or the index is damaged or names files that are missing.
    """
    path = folder / INDEX
    if path.is_file():
        index: dict[str, list[str] | None] = {}
        try:
            for key, name in sorted(json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()):
                if PurePosixPath(name).name != name:
                    raise ValueError
                index.setdefault(name, []).append(key)  # pyright: ignore[reportOptionalMemberAccess]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RedipruneError(f"'{path}' is damaged; download the checkpoint again") from error
        absent = [name for name in index if not (folder / name).is_file()]
        if absent:
            raise RedipruneError(
                f"checkpoint '{folder}' lacks {len(absent)} of {len(index)} weight files, the first being '{absent[0]}'; "
                "download the rest"
            )
        return dict(sorted(index.items()))
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    if list(folder.glob("*.bin")):
        raise RedipruneError(
            f"checkpoint '{folder}' has its weights in .bin files; convert them once with transformers: "
            "AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(folder)"
        )
    raise RedipruneError(f"checkpoint '{folder}' has no weights: neither {SINGLE} nor {INDEX} is there")


def _read_header(file: Path) -> list[StoredTensor]:
    """Entries of a safetensors file.

    Raises:
        RedipruneError: the file does not hold what its header says (checked by safetensors: offsets without gaps or
            overlaps, each as long as type and shape make it, the last at the file's end).
    """
    try:
        with safe_open(file, framework="pt"), open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RedipruneError(f"weight file '{file}' is truncated or damaged ({reason}); download it again") from error
    header.pop("__metadata__", None)
    entries = []
    for key, entry in header.items():
        start, end = entry["data_offsets"]
        entries.append(StoredTensor(file, key, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start))
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

    def read() -> ir.TensorProtocol:
        tensor = stored.load().to(dtype)
        return ir.tensor((tensor.T if transpose else tensor).contiguous().numpy(), name=name)

    lazy = ir.LazyTensor(read, dtype=_ONNX[dtype], shape=ir.Shape(shape), name=name)
    lazy.meta["stored"] = (stored, dtype)
    return lazy


def _refer(graph: ir.Graph, value: ir.Value, stored: StoredTensor, dtype: torch.dtype, place: str) -> None:
    """Let an initialiser be a weight's own bytes; its users get it through a Cast where the type differs."""
    name, kind, shape = str(value.name), _DTYPES[stored.dtype], ir.Shape(stored.shape)
    tensor = ir.ExternalTensor(
        f"{place}/{stored.file.name}", stored.offset, stored.length, kind, shape=shape, name=name
    )
    if kind == _ONNX[dtype]:
        value.const_value = tensor
        return
    raw = ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)
    value.replace_all_uses_with(raw)
    graph.initializers.pop(name)
    graph.register_initializer(raw)
    users = raw.uses()
    if all(node.op_type == "Gather" and index == 0 for node, index in users):
        for node, _ in users:  # a table: the rows that are looked up are converted, not all of it
            (rows,) = node.outputs
            cast = _cast(rows, value, str(rows.name))
            rows.name, rows.type = f"{rows.name}.stored", raw.type
            graph.insert_after(node, cast)
    else:
        # Beside its first use: run as written, a graph then holds one converted weight at a time.
        first = next(node for node in graph if node in {user for user, _ in users})
        cast = _cast(raw, value, f"{name}.converted")
        graph.insert_before(first, cast)


def _cast(value: ir.Value, like: ir.Value, name: str) -> ir.Node:
    """A Cast through which all users of `value` get it in the type of `like`."""
    assert like.dtype is not None
    converted = ir.Value(name=name, type=like.type, shape=value.shape)
    value.replace_all_uses_with(converted, replace_graph_outputs=True)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", like.dtype)], outputs=[converted], name=f"{name}.cast")


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
