"""Who gets which slot, over a cache in numpy that notes what stands where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rediprune.runtime.serving.kv_slots import MIN_PREFIX, KVSlots, Slot


class Cache:
    """A `BatchDecoding` whose positions hold the embeddings that were written there."""

    def __init__(self, rewinds: bool = True, slots: int = 0):
        self.rewinds, self.slots, self.length, self.moves = rewinds, slots, 0, 0
        self.rows = np.zeros((slots, 0))

    def prefill(self, slot: int, embeds: np.ndarray, position: int) -> np.ndarray:
        self.rows[slot, position : position + embeds.shape[1]] = embeds[0, :, 0]
        return np.zeros(1)

    def step(self, embeds: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def move(self, source: int, target: int, tokens: int) -> None:
        self.moves += 1
        self.rows[target, :tokens] = self.rows[source, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        self.moves += 1
        self.rows[[one, other], :tokens] = self.rows[[other, one], :tokens]

    def resize(self, slots: int, length: int, used: int) -> None:
        fresh = np.full((slots, length), np.nan)
        rows, kept = min(slots, self.slots), min(used, length, self.length)
        fresh[:rows, :kept] = self.rows[:rows, :kept]
        self.rows, self.slots, self.length = fresh, slots, length


def prompt(start: int, count: int) -> np.ndarray:
    """Embeddings [count, 1] that are told apart."""
    return np.arange(start, start + count, dtype=float)[:, None]


def places(embeds: np.ndarray, start: int = 0) -> np.ndarray:
    """Positions [1, count] of tokens one after another."""
    return np.arange(start, start + len(embeds))[None]


def acquired(slots: KVSlots, length: int, embeds: np.ndarray) -> Slot | None:
    return slots.acquire(length, embeds, places(embeds))


def taken(slots: KVSlots, cache: Cache, embeds: np.ndarray, length: int | None = None) -> Slot:
    slot = acquired(slots, length or len(embeds), embeds)
    assert slot is not None
    rest = embeds[slot.used :]
    cache.prefill(slots.index(slot), rest[None], slot.used)
    slot.wrote(rest, places(rest, slot.used))
    return slot


def test_what_two_prompts_have_in_common() -> None:
    slot = Slot()
    for part in (prompt(0, 10), prompt(10, 1), prompt(11, 9)):
        slot.wrote(part, places(part, slot.used))
    assert slot.used == 20
    assert slot.common(prompt(0, 30), places(prompt(0, 30))) == 20
    assert slot.common(prompt(0, 20), places(prompt(0, 20))) == 18  # the last is computed anyway, and not alone
    assert slot.common(prompt(0, 5), places(prompt(0, 5))) == 3
    assert slot.common(prompt(1, 20), places(prompt(1, 20))) == 0
    for at in (0, 9, 10, 11, 15):
        other = prompt(0, 30)
        other[at] = -1
        assert slot.common(other, places(other)) == at


def test_the_same_tokens_at_other_positions_have_nothing_in_common() -> None:
    slot = Slot()
    slot.wrote(prompt(0, 20), places(prompt(0, 20)))
    assert slot.common(prompt(0, 30), places(prompt(0, 30)) * 2) == 1


def test_a_kept_prefix_is_taken_up_and_what_is_too_short_is_not() -> None:
    cache = Cache()
    slots = KVSlots(cache, 2, 4096)
    first = taken(slots, cache, prompt(0, 100))
    slots.release(first, keep=True, ready=1)
    follow = acquired(slots, 200, np.concatenate([prompt(0, 100), prompt(500, 20)]))
    assert follow is not None and follow.used == 100
    np.testing.assert_array_equal(cache.rows[slots.index(follow), :100], np.arange(100))
    slots.release(follow, keep=False, ready=1)
    short = taken(slots, cache, prompt(0, MIN_PREFIX - 1))
    slots.release(short, keep=True, ready=1)
    other = acquired(slots, 50, np.concatenate([prompt(0, MIN_PREFIX - 1), prompt(500, 20)]))
    assert other is not None and other.used == 0


def test_a_cache_that_cannot_rewind_keeps_nothing() -> None:
    cache = Cache(rewinds=False)
    slots = KVSlots(cache, 1, 4096)
    slots.release(taken(slots, cache, prompt(0, 100)), keep=True, ready=1)
    again = acquired(slots, 100, prompt(0, 100))
    assert again is not None and again.used == 0


@pytest.mark.parametrize(
    ("budget", "lengths", "expected"), [(1024, [200] * 9, 4), (512, [300, 300], 1), (256, [256], 1)]
)
def test_the_budget_bounds_the_slots(budget: int, lengths: list[int], expected: int) -> None:
    cache = Cache()
    slots = KVSlots(cache, 8, budget)
    got = [acquired(slots, length, prompt(1000 * at, length)) for at, length in enumerate(lengths)]
    assert sum(slot is not None for slot in got) == expected
    assert cache.slots * cache.length <= budget
    assert slots.fits(budget) and not slots.fits(budget + 1)


def test_a_long_request_shrinks_the_number_of_slots_and_a_short_one_gives_it_back() -> None:
    cache = Cache()
    slots = KVSlots(cache, 8, 2048)
    short = taken(slots, cache, prompt(0, 100))
    assert (cache.slots, cache.length) == (8, 256)
    assert acquired(slots, 2000, prompt(0, 1900)) is None  # it would take all positions
    slots.release(short, keep=True, ready=1)
    long = taken(slots, cache, prompt(5000, 1900), 2000)
    assert (cache.slots, cache.length) == (1, 2048)
    slots.release(long, keep=True, ready=1)
    taken(slots, cache, prompt(0, 100))
    assert (cache.slots, cache.length) == (8, 256)


@dataclass
class Held:
    slot: Slot
    embeds: np.ndarray


class Machine(RuleBasedStateMachine):
    """Slots given and taken in any order: nobody's positions are ever touched by another."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()
        self.slots = KVSlots(self.cache, 4, 2048)
        self.held: list[Held] = []  # in the order of their slots: all are decoded
        self.prompts = 0

    @rule(stem=st.integers(0, 3), shared=st.integers(0, 120), own=st.integers(1, 400), room=st.integers(0, 200))
    def acquire(self, stem: int, shared: int, own: int, room: int) -> None:
        self.prompts += 1
        embeds = np.concatenate([prompt(10_000 * stem, shared), prompt(1_000_000 + 1000 * self.prompts, own)])
        slot = acquired(self.slots, len(embeds) + room, embeds)
        if slot is None:
            longest = max(self.cache.length, -(-(len(embeds) + room) // 256) * 256)
            assert len(self.held) == 4 or (len(self.held) + 1) * longest > 2048
            return
        rest = embeds[slot.used :]
        self.cache.prefill(self.slots.index(slot), rest[None], slot.used)
        slot.wrote(rest, places(rest, slot.used))
        self.held.append(Held(slot, embeds))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 3), keep=st.booleans())
    def release(self, which: int, keep: bool) -> None:
        at = which % len(self.held)
        leaving, last = self.held[at], self.held.pop()
        if leaving is not last:
            self.held[at] = last
        self.slots.release(leaving.slot, keep, len(self.held) + 1)

    @invariant()
    def everyone_has_what_he_wrote(self) -> None:
        assert self.slots.busy == len(self.held)
        for at, each in enumerate(self.held):
            assert self.slots.index(each.slot) == at
            assert each.slot.used == len(each.embeds)
            np.testing.assert_array_equal(self.cache.rows[at, : len(each.embeds)], each.embeds[:, 0])
        assert self.slots.positions_in_use == sum(len(each.embeds) for each in self.held)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestMachine = Machine.TestCase
