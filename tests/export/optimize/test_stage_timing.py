"""Candidates take turns; one far behind the best of its stage takes no more, and one that fails says why."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rediprune.calibration.stage_statistics import HeldOutCase
from rediprune.export.optimize import stage_timing
from rediprune.export.optimize.candidates import Candidate
from rediprune.export.optimize.stage_timing import REPEATS, ROUNDS, time_candidates
from rediprune.runtime.bundle import Bundle, Fidelity, Manifest
from rediprune.runtime.errors import RedipruneError


class Sleeper:
    def __init__(self, seconds: float):
        self.seconds, self.runs = seconds, 0

    def run(self, feed: Any) -> dict[str, np.ndarray]:
        self.runs += 1
        time.sleep(self.seconds)
        return {}


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = {"ort": Sleeper(0.004), "openvino": Sleeper(0.003), "openvino-bf16": Sleeper(0.03)}

    def opened(backend: str, *_: object) -> Sleeper:
        if backend == "ort-cuda":
            raise RedipruneError("there is no GPU")
        return sessions[backend]

    monkeypatch.setattr(stage_timing, "open_session", opened)
    monkeypatch.setattr(
        stage_timing, "stage_fidelity", lambda *_: [Fidelity(cosine=1, relative_error=e) for e in (0.01, 0.02)]
    )
    bundle = Bundle(Path(), Manifest.model_construct(image_size=4))
    tried = [Candidate("vision", "int8", backend, bundle) for backend in (*sessions, "ort-cuda")]
    case = HeldOutCase({"pixel_values": np.zeros((2, 3, 4, 4), np.float32)}, {})
    *timed, failed = time_candidates(tried, {"vision": [case]}, 0.15, 1, lambda *_: None)
    assert failed.fault == "there is no GPU"
    assert [one.error for one in timed] == [0.02] * 3
    for one, session in zip(timed, sessions.values(), strict=True):
        assert one.seconds >= session.seconds
    turns = [session.runs // (REPEATS + 1) for session in sessions.values()]
    assert turns == [ROUNDS, ROUNDS, 1]
