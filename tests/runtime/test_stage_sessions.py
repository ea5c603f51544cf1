"""Stages are opened once, in the background or by whoever needs them; nobody waits for one that is not needed."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rediprune.runtime.stage_sessions import StageSessions

SLOW = 0.2  # seconds


class Opening:
    """Opens stages slowly, and notes which and how often."""

    def __init__(self, fail: int = 0):
        self.opened: list[str] = []
        self.fail = fail
        self.lock = threading.Lock()

    def __call__(self, stage: str) -> object:
        with self.lock:
            self.opened.append(stage)
            self.fail -= 1
            fails = self.fail >= 0
        time.sleep(SLOW)
        if fails:
            raise OSError(f"{stage} does not load")
        return object()


def test_one_load_per_stage_whoever_asks_first() -> None:
    opening = Opening()
    sessions = StageSessions(["a", "b"], opening)
    sessions.prefetch(["a", "b"])
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(sessions.__getitem__, ["a", "b"] * 8))
    assert sorted(opening.opened) == ["a", "b"]
    assert len({id(session) for session in found[::2]}) == len({id(session) for session in found[1::2]}) == 1


def test_stages_open_beside_each_other() -> None:
    sessions = StageSessions("abc", Opening())
    begin = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(sessions.__getitem__, "abc"))
    assert time.monotonic() - begin < 2 * SLOW


def test_prefetching_does_not_wait_and_does_not_open_twice() -> None:
    opening = Opening()
    sessions = StageSessions("abc", opening)
    begin = time.monotonic()
    sessions.prefetch("abc")
    assert time.monotonic() - begin < SLOW / 2
    for stage in "cba":
        assert sessions[stage] is sessions[stage]
    assert sorted(opening.opened) == ["a", "b", "c"]


def test_what_fails_in_the_background_is_told_to_whoever_needs_it() -> None:
    opening = Opening(fail=2)
    sessions = StageSessions("a", opening)
    sessions.prefetch("a")
    with pytest.raises(OSError, match="a does not load"):
        sessions["a"]
    assert sessions["a"] is sessions["a"]  # the next who asks tries again
    assert opening.opened == ["a", "a", "a"]


def test_a_prefetch_that_is_stopped_opens_no_more() -> None:
    opening = Opening()
    sessions = StageSessions("abcdef", opening)
    sessions.prefetch("abcdef")
    sessions.stop_prefetch()
    time.sleep(2 * SLOW)
    assert len(opening.opened) <= 2


ENDINGS = {
    "sys.exit(2)": 2,
    "raise ValueError": 1,
    "pass": 0,
    "import os, signal; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)": -2,  # KeyboardInterrupt, unhandled
}


@pytest.mark.process
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "opening", ["time.sleep(30)", "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 10**9)"], ids=["python", "c"]
)
def test_the_process_ends_at_once_while_a_stage_is_opened(ending: str, opening: str) -> None:
    """In Python, or in a library that has let go of the interpreter; with the exit code that it would have had."""
    script = f"""
import sys, time
from rediprune.runtime.stage_sessions import StageSessions
StageSessions(["a"], lambda stage: {opening}).prefetch(["a"])
time.sleep(0.2)
print("out", flush=True)
begin = time.monotonic()
{ending}
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=25)
    assert (done.returncode, done.stdout) == (ENDINGS[ending], "out\n"), done.stderr
    assert time.monotonic() - begin < 20
