"""A stage: its module, what goes in and out of it, and the layers it is a stack of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
        unlike: how many of the first are unlike the others in what is done around them.
        taps: numbers of layers whose results are concatenated behind the last one's, in their order.
        tapped: name of the output that they are concatenated in, along its second axis.
    """

    path: str
    layers: int
    unlike: int = 0
    taps: tuple[int, ...] = ()
    tapped: str = ""


@dataclass(frozen=True)
class Stage:
    """An eager module and its inputs and outputs.

    Attributes:
        name: "vision", "select", "select_clip", "project", "embed" or "language"; "vision_video" where videos have their own tower.
        module: takes the inputs in their order.
        inputs, outputs: symbols of one name stand for one size within a stage.
        stack: the module's layers, if it is a stack of them.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stack: Stack | None = None

    def symbols(self) -> set[str]:
        """Names of the dynamic dimensions of the inputs."""
        return {dim for port in self.inputs for dim in port.shape if isinstance(dim, str)}

    def random_inputs(self, sizes: dict[str, int], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Random inputs of the given sizes.

        Args:
            sizes: a size for each symbol.
            dtype: of inputs that follow the precision.
            seed: of the generator; equal seeds give equal inputs.

        Returns:
            One tensor for each input: normal numbers, scalars in (0, 1), and integers 1 or 2, which are valid as ids,
            positions and counts alike.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for port in self.inputs:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in port.shape]
            kind = port.dtype or dtype
            if not kind.is_floating_point:
                tensors.append(torch.randint(1, 3, shape, generator=generator, dtype=kind))
            elif shape:
                tensors.append(torch.randn(shape, generator=generator).to(kind))
            else:
                tensors.append(torch.rand(shape, generator=generator).to(kind))
        return tensors
