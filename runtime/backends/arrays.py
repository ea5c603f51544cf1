"""Arrays on either side: what the pipeline does with them between stages, on the GPU where one of them lies there."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .device import DeviceArray

Array = np.ndarray | DeviceArray


def concatenate(parts: Sequence[Array]) -> Array:
    """Along the first axis. On the GPU as soon as one part is: the others are brought there."""
    if len(parts) == 1:
        return parts[0]
    stream = next((part.stream for part in parts if isinstance(part, DeviceArray)), None)
    if stream is None:
        return np.concatenate([np.asarray(part) for part in parts])
    dtype = np.result_type(*{part.dtype for part in parts})
    whole = stream.empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), dtype)
    at = 0
    for part in parts:
        if not isinstance(part, DeviceArray) or part.dtype != dtype:
            part = np.ascontiguousarray(part, dtype)
        stream.copy(part, whole[at : at + part.shape[0]])
        at += part.shape[0]
    return whole


def take(table: Array, rows: np.ndarray) -> Array:
    """Rows [N] of a table [R, D]: [N, D]. On the GPU rows that follow one another are one copy."""
    if isinstance(table, np.ndarray):
        return table[rows]
    taken = table.stream.empty((len(rows), *table.shape[1:]), table.dtype)
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    for start, stop in pairwise(map(int, [*starts, len(rows)])):
        first = int(rows[start])
        table.stream.copy(table[first : first + stop - start], taken[start:stop])
    return taken
