"""Candidates take turns: each is opened, run a few times and closed, round after round, so that drift hits all alike."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ...calibration.evaluation.similarity import stage_fidelity
from ...calibration.stage_statistics import Arrays, HeldOutCase
from ...graphs.selection.counts import num_kept
from ...runtime.backends.session import open_session
from ...runtime.errors import RedipruneError
from ..exporter import Progress
from .candidates import Candidate

ROUNDS, REPEATS, TOKENS = 3, 2, 8
_TEXT_TOKENS = 48
_FAR = 1.5
_COMPARED = 3  # held-out cases that errors are measured on


@dataclass
class Timed:
    """What was measured of a candidate.

    Attributes:
        candidate: what was measured.
        seconds: median of one run: a frame of a tower, the prefill of `language`.
        per_token: median seconds of a decoded token; 0 of a tower.
        error: relative error on held-out samples, the worst; None where there are none.
        fault: why it could not run; "" where it did.
    """

    candidate: Candidate
    seconds: float = 0.0
    per_token: float = 0.0
    error: float | None = None
    fault: str = ""


def time_candidates(
    candidates: Sequence[Candidate],
    cases: Mapping[str, Sequence[HeldOutCase]],
    keep: float,
    threads: int,
    progress: Progress,
) -> list[Timed]:
    """Measure candidates; one that cannot run says why.

    Args:
        candidates: all of one source.
        cases: stage → what the source got and gave on held-out samples.
        keep: ratio of visual tokens in the prompt that is prefilled.
        threads: of every stage; 0 leaves it to the backend.
        progress: told what is measured.
    """
    timed = [Timed(candidate) for candidate in candidates]
    runs: list[list[tuple[float, float]]] = [[] for _ in timed]
    total = ROUNDS * len(timed)
    for turn in range(ROUNDS):
        for at, one in enumerate(timed):
            made = one.candidate
            progress("timing", f"{made.stage} {made.precision} on {made.backend}", (turn * len(timed) + at) / total)
            if one.fault or (
                turn and _is_behind(runs[at], [runs[i] for i, other in enumerate(timed) if _alike(other, one)])
            ):
                continue
            try:
                runs[at] += _turn(made, cases[made.stage], keep, threads)
                if turn == 0 and cases[made.stage]:
                    near = stage_fidelity(made.bundle, made.stage, cases[made.stage][:_COMPARED], made.backend, threads)
                    one.error = max(each.relative_error for each in near)
            except RedipruneError as error:
                one.fault = str(error)
            except Exception as error:  # whatever a library raises: the candidate is out, and it is said why
                one.fault = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            gc.collect()
    for one, measured in zip(timed, runs, strict=True):
        if not one.fault:
            one.seconds, one.per_token = (median(each) for each in zip(*measured, strict=True))
    progress("timing", "done", 1.0)
    return timed


def _alike(other: Timed, one: Timed) -> bool:
    return other.candidate.stage == one.candidate.stage and not other.fault


def _is_behind(mine: Sequence[tuple[float, float]], all_runs: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Whether a candidate was so far behind the best of its stage, in both times, that another turn changes nothing."""
    best = [min(min(run[part] for run in runs) for runs in all_runs if runs) for part in (0, 1)]
    return all(min(run[part] for run in mine) > _FAR * best[part] for part in (0, 1) if best[part])


def _turn(made: Candidate, cases: Sequence[HeldOutCase], keep: float, threads: int) -> list[tuple[float, float]]:
    """Seconds of the run, and of a decoded token, for each repetition after one that warms up."""
    session = open_session(made.backend, made.bundle, made.stage, threads)
    if made.stage == "language":
        prompt = _prompt(made, cases, keep)
        return [_answer(session, prompt) for _ in range(REPEATS + 1)][1:]
    feed = _frame(made, cases)
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        for output in session.run(feed).values():
            np.asarray(output)  # a GPU's is done once it is here
        seconds.append((time.perf_counter() - begun, 0.0))
    return seconds[1:]


def _answer(session: object, prompt: np.ndarray) -> tuple[float, float]:
    decoding = session.start(prompt.shape[1] + TOKENS)  # type: ignore[attr-defined]
    begun = time.perf_counter()
    decoding.step(prompt)
    prefilled = time.perf_counter()
    for _ in range(TOKENS):
        decoding.step(prompt[:, :1])
    return prefilled - begun, (time.perf_counter() - prefilled) / TOKENS


def _frame(made: Candidate, cases: Sequence[HeldOutCase]) -> Arrays:
    """One frame: a held-out picture's, or noise where no sample reaches the tower."""
    if cases:
        return {name: array[:1] if name == "pixel_values" else array for name, array in cases[0].feed.items()}
    size = made.bundle.manifest.image_size
    return {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)}


def _prompt(made: Candidate, cases: Sequence[HeldOutCase], keep: float) -> np.ndarray:
    """A prompt [1, S, D] as long as one about a picture with this keep ratio, of a held-out prompt's embeddings."""
    manifest = made.bundle.manifest
    modality = manifest.modalities.get("image") or manifest.modalities["video"]
    length = _TEXT_TOKENS + num_kept(modality.patches, keep)
    rows = cases[0].feed["prompt"][0] if cases else np.ones((1, manifest.decoder.width), np.float32)
    return np.resize(rows, (1, min(length, manifest.decoder.max_positions - TOKENS), rows.shape[1]))
