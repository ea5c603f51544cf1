"""What was seen of a stage on samples, and its file in the cache beside a bundle."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runtime.bundle.atomic_file import replacing
from .quantize.activation_ranges import Activation

Arrays = dict[str, np.ndarray]


@dataclass
class HeldOutCase:
    """What a stage got and gave for a held-out sample.

    Attributes:
        feed: by name of the input; for `language` prompt [1, S, D] and steps [1, N, D].
        outputs: by name of the output; for `language` logits [N + 1, V].
    """

    feed: Arrays
    outputs: Arrays


@dataclass
class StageStatistics:
    """What was seen of a stage.

    Attributes:
        activations: of the inputs of its linear layers, by name of the graph's value.
        held_out: its cases of the held-out samples.
    """

    activations: dict[str, Activation] = field(default_factory=dict)
    held_out: list[HeldOutCase] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write an .npz; whoever reads at the same time sees the old file or the new one."""
        arrays: Arrays = {}
        for name, seen in self.activations.items():
            arrays |= {f"largest/{name}": seen.largest, f"rows/{name}": seen.rows}
        for at, case in enumerate(self.held_out):
            arrays |= {f"feed/{at}/{name}": array for name, array in case.feed.items()}
            arrays |= {f"outputs/{at}/{name}": array for name, array in case.outputs.items()}
        # Two calibrations of one bundle may write at the same time.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "StageStatistics | None":
        """Read what `save` wrote; None where there is no such file or it is damaged, and has to be made again."""
        try:
            with np.load(path) as stored:  # pickled objects are refused by default
                arrays = {name: np.asarray(stored[name]) for name in stored.files}
            return cls._from_arrays(arrays)
        # A damaged archive may lead to nearly any exception (zipfile, zlib, numpy's headers, names that do not belong
        # together); whatever it is, the file is only a cache and what it held can be observed again.
        except Exception:
            return None

    @classmethod
    def _from_arrays(cls, arrays: Arrays) -> "StageStatistics":
        def part(prefix: str) -> Arrays:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        rows = part("rows/")
        activations = {name: Activation(largest, rows[name]) for name, largest in part("largest/").items()}
        cases = sorted({int(name.split("/")[1]) for name in arrays if name.startswith("feed/")})
        return cls(activations, [HeldOutCase(part(f"feed/{at}/"), part(f"outputs/{at}/")) for at in cases])
