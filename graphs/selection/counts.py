"""How many tokens are kept, and which prompt tokens make the query. Plain Python, shared by every backend."""

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real

_FLOAT32_MAX = 3.4028234e38
QUERY_TOKENS = 128  # the release's TEXT_QUERY_TAIL_MAX


def num_kept(patches: int, keep: float | int) -> int:
    """Number of tokens K kept of `patches` tokens P in one frame.

    Args:
        patches: P, visual tokens of one frame or image.
        keep: a float is the keep ratio in (0, 1]; an int is K itself in [1, P].

    Returns:
        K. For a ratio, `max(1, round(P * keep))` with Python's rounding (half to even), as in the release.

    Raises:
        ValueError: keep is not a finite number in its range.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise ValueError(f"keep must be a ratio (float) or a count (int), not {keep!r}")
    if isinstance(keep, Integral):
        if not 1 <= keep <= patches:
            raise ValueError(f"keep as a count must lie between 1 and the {patches} tokens of a frame, not {keep}")
        return int(keep)
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise ValueError(f"keep as a ratio must lie in (0, 1], not {keep}; for a number of tokens give an int")
    return max(1, round(patches * float(keep)))


def check_weights(alpha: float, tau: float) -> None:
    """Refuse an α or τ that would make the scores, which are float32, meaningless.

    Raises:
        ValueError: α or τ is not a number or not finite in float32, or α is negative.
    """
    if not (_finite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be a finite number ≥ 0, not {alpha!r}")
    if not _finite(tau):
        raise ValueError(f"tau must be finite, not {tau!r}")


def _finite(value: object) -> bool:
    return isinstance(value, Real) and abs(float(value)) <= _FLOAT32_MAX


def query_ids(ids: Sequence[int], placeholders: Collection[int]) -> list[int]:
    """Prompt tokens that make the query: those after the last image or video placeholder, at most the last 128.

    With no placeholder all ids count. The result may be empty: the query is then the zero vector.
    """
    last = max((i for i, token in enumerate(ids) if token in placeholders), default=-1)
    return list(ids[last + 1 :])[-QUERY_TOKENS:]
