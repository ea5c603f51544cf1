"""How long a prompt may be for the first token to come in time."""

import pytest
from rediprune.runtime import prefill_time
from rediprune.runtime.prefill_time import PrefillTime


class Machine:
    """Takes a millisecond for each token, and ten more; its clock runs while it works."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, []

    def prefill(self, tokens: int) -> None:
        self.asked.append(tokens)
        self.now += 0.01 + tokens / 1000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(prefill_time.time, "perf_counter", lambda: machine.now)
    return machine


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [(0.31, 4096, 300), (0.31, 200, 200), (10.0, 3000, 3000), (0.09, 4096, 80), (0.021, 4096, 16), (1e-9, 4096, 0)],
)
def test_the_longest_prompt_within_a_time(machine: Machine, seconds: float, most: int, expected: int) -> None:
    time = PrefillTime(machine.prefill, 4096)
    assert time.longest_within(seconds, most) == pytest.approx(expected, abs=1)


def test_it_measures_no_longer_prompts_than_it_needs_and_each_length_once(machine: Machine) -> None:
    time = PrefillTime(machine.prefill, 4096)
    time.longest_within(0.1, 4096)
    assert max(machine.asked) == 128  # the first that takes longer
    asked = len(machine.asked)
    time.longest_within(0.1, 4096)
    assert len(machine.asked) == asked


def test_it_stays_within_the_models_positions(machine: Machine) -> None:
    assert PrefillTime(machine.prefill, 100).longest_within(60, 4096) == 100
    assert max(machine.asked) == 100
