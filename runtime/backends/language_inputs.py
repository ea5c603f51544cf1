"""What a language stage takes besides embeddings and cache: positions, and embeddings for its first layers.

Bundles that were made before positions were an input have none.
"""

from collections.abc import Sequence

import numpy as np

from ..bundle import StageSpec
from ..errors import RedipruneError

POSITIONS, DEEPSTACK = "position_ids", "deepstack"


class LanguageInputs:
    """Those inputs of one language stage.

    Attributes:
        axes: 0, the stage takes no positions: a token's is its slot; 1, [B, S]; 3, [3, B, S].
        taps: T of the deepstack [T, B, S, D]; 0, there is none.
    """

    def __init__(self, spec: StageSpec):
        ports = {port.name: port for port in spec.inputs}
        positions, deepstack = ports.get(POSITIONS), ports.get(DEEPSTACK)
        self.axes = 0 if positions is None else 1 if len(positions.shape) == 2 else int(positions.shape[0])
        self.taps = 0 if deepstack is None else int(deepstack.shape[0])
        self._width = int(spec.inputs[0].shape[2]) if deepstack is not None else 0
        self._dtype = None if deepstack is None else np.dtype(deepstack.dtype)

    def feed(
        self,
        slots: Sequence[int],
        tokens: int,
        positions: np.ndarray | None = None,
        deepstack: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """The inputs by name.

        Args:
            slots: [B], each row's first slot.
            tokens: S.
            positions: [A, B, S] int64, or [A, S] of one row; None, each token's slot.
            deepstack: [T, S, D] of one row, zeros where a token is text; None, all are text.

        Raises:
            RedipruneError: positions for a stage that takes none.
        """
        found = {}
        if positions is not None and not self.axes:
            raise RedipruneError("this bundle's language stage takes no positions; export the checkpoint again")
        if self.axes:
            found[POSITIONS] = self._positions(slots, tokens, positions)
        if self.taps:
            shape = (self.taps, len(slots), tokens, self._width)
            given = np.zeros(shape, self._dtype) if deepstack is None else deepstack[:, None]
            found[DEEPSTACK] = np.ascontiguousarray(given, self._dtype)
        return found

    def _positions(self, slots: Sequence[int], tokens: int, positions: np.ndarray | None) -> np.ndarray:
        if positions is None:
            given = (np.asarray(slots, np.int64)[:, None] + np.arange(tokens))[None]  # [1, B, S]
        else:
            given = positions if positions.ndim == 3 else positions[:, None]
        # Filled, not cast: numpy has two types called int64, of which OpenVINO takes one.
        whole = np.empty((self.axes, len(slots), tokens), np.int64)
        whole[...] = given
        return whole[0] if self.axes == 1 else whole
