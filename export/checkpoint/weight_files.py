"""Which of a checkpoint folder's files hold its weights, and what lies where in them: as transformers takes them.

Source: `transformers.modeling_utils._get_resolved_checkpoint_files`. A single file comes before an index, safetensors
come before anything else, and of the files that an index names everything counts, the last of two equal keys first.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...runtime.errors import RedipruneError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CHUNK = 1 << 24  # bytes that are read at once


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

    def rows(self, indices: Tensor) -> Tensor:
        """Some rows of a table, [..., width] for indices [...]: those alone are read."""
        distinct, places = torch.unique(indices, return_inverse=True)
        with safe_open(self.file, framework="pt") as shard:
            view = shard.get_slice(self.key)
            found = [view[index : index + 1] for index in distinct.tolist()]
        return torch.cat(found)[places]

    def chunks(self) -> Iterator[Tensor]:
        """The values as stored, a few rows at a time, so that memory is bounded whatever the tensor's size."""
        rows = max(1, _CHUNK * self.shape[0] // max(self.length, 1)) if self.shape else 1
        with safe_open(self.file, framework="pt") as shard:
            if not self.shape:
                yield shard.get_tensor(self.key)
                return
            view = shard.get_slice(self.key)
            for start in range(0, self.shape[0], rows):
                yield view[start : start + rows]


def weight_files(folder: Path, named: str | None = None) -> list[Path]:
    """The files that count, in the order in which they are read.

    Args:
        folder: the checkpoint.
        named: what its config names as `transformers_weights`, a safetensors file or an index.

    Raises:
        RedipruneError: there are none, the index is damaged or names files that are missing, or the weights are of
            another form; says what to do about it.
    """
    if named is not None and PurePosixPath(named).name != named:
        raise RedipruneError(
            f"transformers_weights of '{folder / 'config.json'}' is '{named}'; it must be a file of the checkpoint's folder"
        )
    single, index = folder / (named or SINGLE), folder / (named or INDEX)
    if single.is_file() and not single.name.endswith(".index.json"):
        return [single]
    if index.is_file():
        return _indexed(index)
    raise RedipruneError(_none_found(folder, single if named else None))


def stored_keys(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Key → its tensor, of all the files together.

    Raises:
        RedipruneError: a file does not hold what its header says.
    """
    return {tensor.key: tensor for file in files for tensor in _read_header(file)}


def _indexed(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        RedipruneError: it is damaged, files are missing, or a file lacks a tensor that the index promises there.
    """
    folder = index.parent
    promised: dict[str, list[str]] = {}
    try:
        for key, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
                raise ValueError
            promised.setdefault(name, []).append(key)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise RedipruneError(f"'{index}' is damaged; download the checkpoint again") from error
    absent = [name for name in sorted(promised) if not (folder / name).is_file()]
    if absent or not promised:
        raise RedipruneError(
            f"checkpoint '{folder}' lacks {len(absent)} of {len(promised)} weight files, the first being "
            f"'{absent[0] if absent else SINGLE}'; download the rest"
        )
    for name, keys in promised.items():
        lost = set(keys).difference(tensor.key for tensor in _read_header(folder / name))
        if lost:
            raise RedipruneError(
                f"'{index}' says that '{min(lost)}' is in '{name}', and it is not; the weight files and the index are of "
                "different downloads: download the checkpoint again"
            )
    return [folder / name for name in sorted(promised)]


def _none_found(folder: Path, named: Path | None) -> str:
    """What a folder without safetensors has instead."""
    if named is not None:
        return (
            f"checkpoint '{folder}' lacks '{named.name}', which its config names as transformers_weights; download it"
        )
    if any(folder.glob("*.bin")):
        return (
            f"checkpoint '{folder}' has its weights in .bin files; convert them once with transformers: "
            "AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(folder)"
        )
    if any(folder.glob("*.gguf")):
        return f"checkpoint '{folder}' has its weights in GGUF, a quantised form; give the original checkpoint"
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return (
            f"checkpoint '{folder}' has '{others[0]}', but neither {SINGLE} nor {INDEX}, by which weights are found; "
            "download the missing one"
        )
    return f"checkpoint '{folder}' has no weights: neither {SINGLE} nor {INDEX} is there"


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
