"""Rules of other papers to choose visual tokens by, of features and question alone, in numpy.

Each is restated from its paper; where the authors' code runs on something that a LLaVA checkpoint has not, or at another
place, it is said. All choose in one frame; frames are independent.
"""

import numpy as np

_NOTHING = 1e-6  # a token that adds less lies among the picks: what rounding leaves of it must not be divided by
_LEAST = 1e-6  # keeps the least relevant token's share above 0, as the authors' code does


def divprune(features: np.ndarray, count: int) -> np.ndarray:
    """Max-min diversity without the question.

    The first pick is the token whose nearest neighbour is furthest away, each further one that whose nearest pick is.

    Args:
        features: [P, C] float32; the authors take the tokens behind the projector, here they are those before it.
        count: K.

    Returns:
        [K] int64, ascending.

    Source: DivPrune, arXiv 2503.02175, equations (2) and (3).
    """
    distance = 1 - _cosines(features)  # [P, P]
    others = distance + np.diag(np.full(len(features), np.inf, np.float32))
    picks = [int(others.min(axis=0).argmax())]
    nearest = distance[picks[0]].copy()
    for _ in range(count - 1):
        nearest[picks] = -np.inf
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[picks[-1]])
    return np.sort(np.array(picks))


def cdpruner(features: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """The most probable K tokens of a determinantal point process conditioned on the question, greedily.

    The kernel is `r_i · cos(i, j) · r_j` with relevance r brought to (0, 1]; each pick is the token that adds most to its
    determinant (the fast greedy of Chen et al., arXiv 1709.05135).

    Args:
        features: [P, C] float32.
        query: [C], the question's; the authors take CLIP's text encoder, which a LLaVA checkpoint does not have: here it is
            ReDiPrune's query vector.
        count: K.

    Returns:
        [K] int64, ascending.

    Source: CDPruner, arXiv 2506.10967, section 3; the authors' code takes the negative of the cosine with the question for
    relevance, which belongs to CLIP's tokens: here it is the cosine.
    """
    relevance = _unit(features) @ _unit(query)
    spread = relevance.max() - relevance.min()
    relevance = (relevance - relevance.min() + _LEAST) / max(spread, _LEAST)
    kernel = relevance[:, None] * _cosines(features) * relevance  # [P, P]
    gain = np.diagonal(kernel).copy()  # what each token would add to the logarithm of the determinant, as exp
    rows = np.zeros((count, len(features)), np.float32)
    picks: list[int] = []
    for at in range(count):
        pick = int(gain.argmax())
        picks.append(pick)
        if gain[pick] > _NOTHING:
            rows[at] = (kernel[pick] - rows[:at, pick] @ rows[:at]) / np.sqrt(gain[pick])
        gain = gain - rows[at] ** 2
        gain[picks] = -np.inf
    return np.sort(np.array(picks))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _cosines(features: np.ndarray) -> np.ndarray:
    unit = _unit(features)
    return unit @ unit.T
