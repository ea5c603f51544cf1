"""The checkpoint's weights: found by their safetensors headers and bound to a graph, by reference or as copies.

By reference, a graph's initialiser is a place in the checkpoint's own file (zero-copy). As a copy, it is read,
converted and written when the graph is saved. Nothing here holds more than one tensor in memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ...runtime.errors import RedipruneError
from .unsuitable import refuse_packed
from .weight_files import StoredTensor, stored_keys
from .weight_initializers import WEIGHT_TYPES, copied, fold_transposes, refer


def stored_weights(model: nn.Module, files: Sequence[Path]) -> dict[str, StoredTensor]:
    """The stored tensors under the names of a model's parameters.

    Older releases use other names (transformers' renamings). Where several stored tensors mean one parameter, that one
    counts which comes first in the order of their names, as in `transformers.core_model_loading`.

    Args:
        model: as transformers builds it from the checkpoint's config.
        files: of `weight_files`.

    Raises:
        RedipruneError: a damaged file, or packed weights.
    """
    tensors = stored_keys(files)
    refuse_packed(files[0].parent, tensors)
    rename = _renamer(model)
    named: dict[str, StoredTensor] = {}
    for key in sorted(tensors, key=dot_natural_key):
        named.setdefault(rename(key), tensors[key])
    return named


def untie(model: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Part parameters that the config ties, but that are stored with different values: each then has its own.

    So does transformers (`PreTrainedModel.tie_weights`), which takes the config for wrong then. With one of them stored,
    or both with the same values, they stay tied.
    """
    for name, source in model.all_tied_weights_keys.items():
        pair = [stored[each] for each in (name, source) if each in stored]
        if len(pair) == 2 and not _equal(pair[0], pair[1], model.dtype):
            place, _, leaf = name.rpartition(".")
            apart = nn.Parameter(torch.empty_like(model.get_parameter(source)), requires_grad=False)
            model.get_submodule(place).register_parameter(leaf, apart)


def _equal(one: StoredTensor, other: StoredTensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are loaded as the same values."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:  # then a chunk of one is no chunk of the other
        return torch.equal(one.load().to(dtype), other.load().to(dtype))
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(one.chunks(), other.chunks(), strict=True))


class Weights:
    """The weights of a checkpoint folder under the names of the transformers model built from its config.

    Attributes:
        files: that hold them.
        stored: by the name of the model's parameter.
        needed: the tensors of the parameters that were asked for.
    """

    def __init__(self, folder: Path, model: nn.Module, needed: Iterable[Tensor], files: Iterable[Path]):
        """Match what is stored to `model` (on any device, meta included).

        Args:
            folder: the checkpoint.
            model: built from its config.
            needed: the model's parameters that must be there.
            files: that hold its weights (`weight_files`).

        Raises:
            RedipruneError: a truncated or inconsistent shard, weights of a type that is not taken, or weights that are
                not those of the model.
        """
        self.files = list(files)
        self.stored = stored_weights(model, self.files)
        self._owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._owners.setdefault(id(parameter), []).append(name)
        self.needed: list[StoredTensor] = []
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
            elif found.dtype not in WEIGHT_TYPES:
                raise RedipruneError(
                    f"weight '{found.key}' in '{found.file}' is stored as {found.dtype}; weights must be bfloat16, float16 "
                    "or float32: give the checkpoint as it was before it was quantised"
                )
            else:
                self.needed.append(found)
        if missing:
            raise RedipruneError(
                f"checkpoint '{folder}' lacks {len(missing)} weights of its config, the first being '{missing[0]}'; "
                f"{_untied_head(model, missing) or 'download it again, or check that config.json belongs to these weights'}"
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
                    value.const_value = copied(stored, dtype, name)
                else:
                    refer(model.graph, value, stored, dtype, place)
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
        if func is F.embedding and id(args[1]) in self.owned and id(args[1]) not in self.buffers:
            rows = self.weights.of(args[1]).rows(self._value(args[0])).to(self.dtype)  # it may be most of a model
            return rows.float()
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


def _untied_head(model: Any, missing: list[str]) -> str:
    """What to do where nothing is missing but the head, which other checkpoints share with the embeddings."""
    head = model.get_output_embeddings()
    names = [name for name, parameter in model.named_parameters() if head is not None and parameter is head.weight]
    if missing != names:
        return ""
    return "if the model shares it with its input embeddings, set tie_word_embeddings to true in config.json"


def _renamer(model: Any) -> Callable[[str], str]:
    """From a checkpoint's key to the model's own name."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = model.state_dict()

    def rename(key: str) -> str:
        name = rename_source_key(key, renamings, converters, model.base_model_prefix, state)[0]
        if name in state or key not in state:
            return name
        return rename_source_key(key, [], [], model.base_model_prefix, state)[0]

    return rename
