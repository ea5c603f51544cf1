"""Rules of other papers, on cases that can be worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from rediprune.calibration.evaluation.compared_rules import cdpruner, divprune


def at(*degrees: float) -> np.ndarray:
    """Tokens of a plane, by their angles."""
    turn = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)


def test_divprune_begins_with_the_token_whose_nearest_neighbour_is_furthest() -> None:
    tokens = at(0, 10, 100, 20)  # nearest neighbours at 10, 10, 80 and 10 degrees
    assert divprune(tokens, 1).tolist() == [2]
    assert divprune(tokens, 2).tolist() == [0, 2]  # 0 degrees is furthest from 100
    assert divprune(tokens, 3).tolist() == [0, 2, 3]  # 20 degrees is 20 away from a pick, 10 degrees only 10
    assert divprune(tokens, 4).tolist() == [0, 1, 2, 3]


def test_divprune_looks_at_directions_alone() -> None:
    tokens = at(0, 10, 100, 20)
    assert divprune(tokens * np.array([[1], [50], [1], [0.1]], np.float32), 2).tolist() == [0, 2]


def test_cdpruner_takes_the_most_relevant_first_and_then_what_is_new() -> None:
    tokens, query = at(0, 5, 60), at(0)[0]
    # Relevances 1, cos 5 and cos 60 are brought to 1, 0.992 and 0; what is left of the second beside the first is
    # 0.992² · (1 − cos² 5) = 0.0075, of the third 1e-12: relevance decides.
    assert cdpruner(tokens, query, 1).tolist() == [0]
    assert cdpruner(tokens, query, 2).tolist() == [0, 1]


def test_cdpruner_weighs_relevance_against_what_is_new() -> None:
    # Relevances 1, cos 30 = 0.866, cos 50 = 0.643 and cos 90 = 0: beside the first pick 0.75 · (1 − 0.75) = 0.1875 of the
    # second are new, and 0.413 · (1 − 0.413) = 0.2425 of the third.
    assert cdpruner(at(0, 30, 50, 90), at(0)[0], 2).tolist() == [0, 2]


@pytest.mark.parametrize("rule", [divprune, lambda tokens, count: cdpruner(tokens, tokens[0], count)])
@pytest.mark.parametrize("kind", ["random", "copies", "zeros"])
def test_every_token_is_chosen_once(rule: Callable[[np.ndarray, int], np.ndarray], kind: str) -> None:
    tokens = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    if kind == "copies":
        tokens[1:] = tokens[0]
    if kind == "zeros":
        tokens[3:] = 0
    for count in range(1, 13):
        chosen = rule(tokens, count)
        assert len(chosen) == count == len(set(chosen.tolist())) and (np.diff(chosen) > 0).all()


def by_determinant(tokens: np.ndarray, query: np.ndarray, count: int) -> list[int]:
    """CDPruner's greedy choice with the determinants themselves, in float64."""
    unit = tokens.astype(np.float64) / np.linalg.norm(tokens, axis=1, keepdims=True)
    relevance = unit @ (query / np.linalg.norm(query))
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    picks: list[int] = []
    for _ in range(count):
        gains = [
            -np.inf if token in picks else np.linalg.slogdet(kernel[np.ix_([*picks, token], [*picks, token])])[1]
            for token in range(len(tokens))
        ]
        picks.append(int(np.argmax(gains)))
    return sorted(picks)


@pytest.mark.parametrize("seed", range(8))
def test_cdpruner_is_the_greedy_choice_by_determinant(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens, query = random.standard_normal((10, 16)).astype(np.float32), random.standard_normal(16).astype(np.float32)
    assert cdpruner(tokens, query, 5).tolist() == by_determinant(tokens, query, 5)
