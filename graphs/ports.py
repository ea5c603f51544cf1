"""What goes in and out of a stage, and the layers it is a stack of."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Port:
    """One input or output of a stage.

    Attributes:
        name: as in the ONNX graph.
        shape: dimensions, each a size or, where it is dynamic, a symbol.
        dtype: None follows the precision of the stage.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Stack:
    """Layers of one kind that a module runs one after the other.

    Attributes:
        path: of their ModuleList within the stage's module.
        layers: how many of them are run, from the first on.
    """

    path: str
    layers: int
