"""What a language stage's input `position_ids` is fed; bundles that were made before it have none."""

from collections.abc import Sequence

import numpy as np

from ..bundle import StageSpec
from ..errors import RedipruneError

NAME = "position_ids"


class PositionInput:
    """The input of one language stage.

    Attributes:
        axes: 0, the stage has no such input and takes a token's slot for its position; 1, [B, S]; 3, [3, B, S].
    """

    def __init__(self, spec: StageSpec):
        shapes = [port.shape for port in spec.inputs if port.name == NAME]
        self.axes = 0 if not shapes else 1 if len(shapes[0]) == 2 else int(shapes[0][0])

    def ids(self, slots: Sequence[int], tokens: int, positions: np.ndarray | None = None) -> np.ndarray | None:
        """What the input is fed.

        Args:
            slots: [B], each row's first slot.
            tokens: S.
            positions: [A, B, S], or [A, S] of one row; None, each token's slot.

        Returns:
            int64 of the input's shape; None where there is no such input.

        Raises:
            RedipruneError: positions for a stage that takes none.
        """
        if not self.axes:
            if positions is not None:
                raise RedipruneError("this bundle's language stage takes no positions; export the checkpoint again")
            return None
        if positions is None:
            found = (np.asarray(slots, np.int64)[:, None] + np.arange(tokens))[None]  # [1, B, S]
        else:
            found = positions if positions.ndim == 3 else positions[:, None]
        whole = np.broadcast_to(found, (self.axes, len(slots), tokens))
        chosen = whole[0] if self.axes == 1 else whole
        # Made and filled: `np.array` keeps C's long long where it is given that, which OpenVINO does not take for int64.
        ids = np.empty(chosen.shape, np.int64)
        ids[...] = chosen
        return ids
