"""How many tokens are kept, which prompt tokens make the query, and which settings are refused.

Plain Python, shared by every implementation.
"""

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


def num_candidates(patches: int, count: int) -> int | None:
    """Number of candidates that τ > 0 leaves in one frame, where it does not depend on τ.

    Args:
        patches: P, visual tokens of the frame.
        count: K, the tokens to keep of it.

    Returns:
        `min(P, max(3K, K + 1))` where K < P // 2: the release does not look at τ there. None otherwise: the tokens
        with relevance ≥ τ are the candidates, or the K most relevant if those are fewer.
    """
    return min(patches, max(3 * count, count + 1)) if count < patches // 2 else None


def check_shapes(features: Sequence[int], query: Sequence[int]) -> None:
    """Refuse features and a query that no selection is possible on.

    Args:
        features: the shape that should be [F, P, C].
        query: the shape that should be [D].

    Raises:
        ValueError: another number of dimensions, or an empty P, C or D.
    """
    if len(features) != 3:
        raise ValueError(f"features must be [P, C] or [F, P, C], not {list(features)}")
    if len(query) != 1:
        raise ValueError(f"query must be [D], not {list(query)}")
    if not (features[1] and features[2] and query[0]):
        raise ValueError(f"features {list(features)} and query {list(query)} must not be empty")


def check_weights(alpha: float, tau: float) -> None:
    """Refuse an α or τ that would make the scores, which are float32, meaningless.

    Raises:
        ValueError: α or τ is not a number or not finite in float32, or α is negative.
    """
    if not (_finite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be a finite number ≥ 0, not {alpha!r}")
    if not _finite(tau):
        raise ValueError(f"tau must be finite, not {tau!r}")


def check_clip(count: int, least: int, threshold: float) -> None:
    """Refuse settings of a selection over a whole clip that cannot be met.

    Args:
        count: K, tokens kept of each frame on average.
        least: tokens kept of each frame at least.
        threshold: the score below which no token is worth keeping; −inf is off.

    Raises:
        ValueError: more are to be kept of each frame than on average, or none, or the threshold is not a number.
    """
    if isinstance(least, bool) or not isinstance(least, Integral) or not 1 <= least <= count:
        raise ValueError(
            f"min_per_frame must lie between 1 and the {count} tokens kept of a frame on average, not {least!r}"
        )
    if not (_finite(threshold) or threshold == -math.inf):
        raise ValueError(f"threshold must be finite, or -inf for none, not {threshold!r}")


def _finite(value: object) -> bool:
    return isinstance(value, Real) and abs(float(value)) <= _FLOAT32_MAX


def query_ids(ids: Sequence[int], placeholders: Collection[int]) -> list[int]:
    """Prompt tokens that make the query: those after the last image or video placeholder, at most the last 128.

    Args:
        ids: the prompt's token ids.
        placeholders: ids that stand for an image or a video.

    Returns:
        The ids; with no placeholder all of them count. May be empty: the query is then the zero vector.
    """
    last = max((i for i, token in enumerate(ids) if token in placeholders), default=-1)
    return list(ids[last + 1 :])[-QUERY_TOKENS:]
