"""How near a stage comes to another bundle's: its outputs on the same inputs, and the tokens kept of its features."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ...runtime.backends.arrays import Array
from ...runtime.backends.session import LanguageSession, open_session
from ...runtime.bundle import Bundle, Fidelity
from ..stage_statistics import HeldOutCase


def stage_fidelity(
    bundle: Bundle, stage: str, cases: Sequence[HeldOutCase], backend: str = "ort", threads: int = 0
) -> list[Fidelity]:
    """Run a stage on inputs of which the outputs of another bundle's are known; one comparison for each output."""
    run = stage_runner(backend, bundle, stage, threads)
    found = []
    for case in cases:
        ours = run(case.feed)
        found += [nearness(np.asarray(ours[name]), theirs) for name, theirs in case.outputs.items()]
    return found


def nearness(ours: np.ndarray, theirs: np.ndarray) -> Fidelity:
    """Cosine and relative error of an array beside the one it should be, both as one vector."""
    a, b = (np.asarray(array).astype(np.float64).ravel() for array in (ours, theirs))
    norm = max(float(np.linalg.norm(b)), 1e-300)
    cosine = float(a @ b) / max(float(np.linalg.norm(a)) * norm, 1e-300)
    return Fidelity(cosine=cosine, relative_error=float(np.linalg.norm(a - b)) / norm)


def jaccard(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> float:
    """Overlap of kept sets, the mean over frames: both [F, K], or frames [K] of several."""
    scores = [len(np.intersect1d(a, b)) / len(np.union1d(a, b)) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(scores))


def stage_runner(
    backend: str, bundle: Bundle, stage: str, threads: int
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, Array]]:
    """A loaded stage as a function of a case; of `language`, `prompt` [1,S,D], then `steps` [1,N,D] one by one, at
    `positions` [A,S+N] where they are given, the prompt with its `deepstack` [T,S,D] → logits [N+1,V]."""
    session = open_session(backend, bundle, stage, threads)
    return _language_runner(session) if stage == "language" else session.run


def _language_runner(language: LanguageSession) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, Array]]:

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, Array]:
        prompt, steps, positions = feed["prompt"], feed["steps"], feed.get("positions")
        tokens = prompt.shape[1]
        decoding = language.start(tokens + steps.shape[1])

        def step(embeds: np.ndarray, at: int, deepstack: np.ndarray | None = None) -> np.ndarray:
            places = None if positions is None else positions[:, at : at + embeds.shape[1]]
            return decoding.step(embeds, places, deepstack)

        logits = [step(prompt, 0, feed.get("deepstack"))]
        logits += [step(steps[:, at : at + 1], tokens + at) for at in range(steps.shape[1])]
        return {"logits": np.stack(logits)}

    return run
