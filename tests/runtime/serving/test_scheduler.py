"""The scheduler over a toy language stage whose logits depend on every position of a slot: a row that is read from the wrong
slot, at the wrong position, or from a stale cache gives other tokens."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.positions import Positions, span_of
from rediprune.runtime.serving.scheduler import Job, QueueFullError, Scheduler, StoppedError

WIDTH, VOCABULARY = 6, 40
_RANDOM = np.random.default_rng(0)
TABLE = _RANDOM.standard_normal((VOCABULARY, WIDTH))
HEAD = _RANDOM.standard_normal((WIDTH, VOCABULARY))


def toy_logits(rows: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """rows [n, D] → logits [V]; every row and its position count."""
    places = np.arange(len(rows)) if positions is None else positions
    return np.tanh((rows * np.cos(places + 1)[:, None]).sum(0)) @ HEAD


class Toy:
    """A `BatchDecoding` in numpy."""

    rewinds = True

    def __init__(self) -> None:
        self.slots = self.length = 0
        self.cache = np.zeros((0, 0, WIDTH + 1))  # the last column is the position
        self.calls: list[int] = []  # tokens of each call, prompts negative
        self.gate: threading.Event | None = None

    def prefill(
        self,
        slot: int,
        embeds: np.ndarray,
        start: int,
        positions: np.ndarray | None = None,
        deepstack: np.ndarray | None = None,
    ) -> np.ndarray:
        if deepstack is not None:
            embeds = embeds + deepstack.sum(0)[None]
        if self.gate is not None:
            self.gate.wait(10)
        self.calls.append(-embeds.shape[1])
        stop = start + embeds.shape[1]
        self.cache[slot, start:stop, :WIDTH] = embeds[0]
        self.cache[slot, start:stop, WIDTH] = np.arange(start, stop) if positions is None else positions[0]
        return self.logits(slot, stop)

    def step(self, embeds: np.ndarray, starts: Sequence[int], positions: np.ndarray | None = None) -> np.ndarray:
        self.calls.append(len(starts))
        for slot, start in enumerate(starts):
            self.cache[slot, start, :WIDTH] = embeds[slot, 0]
            self.cache[slot, start, WIDTH] = start if positions is None else positions[0, slot, 0]
        return np.stack([self.logits(slot, start + 1) for slot, start in enumerate(starts)])

    def logits(self, slot: int, stop: int) -> np.ndarray:
        return toy_logits(self.cache[slot, :stop, :WIDTH], self.cache[slot, :stop, WIDTH])

    def move(self, source: int, target: int, tokens: int) -> None:
        self.cache[target, :tokens] = self.cache[source, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        self.cache[[one, other], :tokens] = self.cache[[other, one], :tokens]

    def resize(self, slots: int, length: int, used: int) -> None:
        fresh = np.full((slots, length, WIDTH + 1), np.nan)  # what is read but was never written shows
        rows, kept = min(slots, self.slots), min(used, length, self.length)
        fresh[:rows, :kept] = self.cache[:rows, :kept]
        self.cache, self.slots, self.length = fresh, slots, length


class Greedy:
    """A sink that takes `count` tokens."""

    def __init__(self, count: int, cancel_after: int | None = None):
        self.count, self.cancel_after = count, cancel_after
        self.tokens: list[int] = []
        self.done = threading.Event()
        self.error: Exception | None = None
        self.job: Job | None = None

    def token(self, logits: np.ndarray) -> int | None:
        self.tokens.append(int(logits.argmax()))
        if len(self.tokens) == self.cancel_after:
            assert self.job is not None
            self.job.cancel()
            self.done.set()
        if len(self.tokens) == self.count:
            self.done.set()
            return None
        return self.tokens[-1]

    def failed(self, error: Exception) -> None:
        self.error = error
        self.done.set()


def alone(embeds: np.ndarray, count: int, positions: Positions | None = None) -> list[int]:
    """The tokens of a request that runs by itself."""
    rows, tokens = embeds, []
    while len(tokens) < count:
        tokens.append(int(toy_logits(rows, span_of(positions, 0, len(rows))[0]).argmax()))
        rows = np.concatenate([rows, TABLE[tokens[-1]][None]])
    return tokens


def make(toy: Toy, **options: int) -> Scheduler:
    settings = {"max_slots": 4, "max_positions": 4096, "max_waiting": 100, "prefill_chunk": 8} | options
    return Scheduler(toy, lambda ids: TABLE[list(ids)], **settings)


def submit(scheduler: Scheduler, embeds: np.ndarray, sink: Greedy, positions: Positions | None = None) -> Job:
    sink.job = Job(embeds, sink.count, sink, positions)
    scheduler.submit(sink.job)
    return sink.job


requests = st.lists(
    st.tuples(
        st.integers(1, 60),  # prompt
        st.integers(1, 25),  # answer
        st.sampled_from([None, None, 1, 3]),  # cancelled after so many tokens
        st.integers(0, 3),  # whose beginning it shares
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(requests, st.integers(1, 5), st.sampled_from([256, 512, 4096]), st.integers(1, 20))
def test_every_request_gets_the_tokens_that_it_gets_alone(
    asked: list[tuple[int, int, int | None, int]], slots: int, positions: int, chunk: int
) -> None:
    stems = np.random.default_rng(1).standard_normal((4, 60, WIDTH))
    scheduler = make(Toy(), max_slots=slots, max_positions=positions, prefill_chunk=chunk)
    sinks = []
    for at, (length, count, cancel, stem) in enumerate(asked):
        embeds = np.concatenate(
            [stems[stem, : length // 2 + 20], np.random.default_rng(at).standard_normal((length, WIDTH))]
        )
        sinks.append((embeds, Greedy(count, cancel)))
        submit(scheduler, *sinks[-1])
    scheduler.stop()
    for embeds, sink in sinks:
        assert sink.error is None
        expected = alone(embeds, sink.count)
        assert sink.tokens == expected[: len(sink.tokens)]
        assert len(sink.tokens) == min(sink.count, sink.cancel_after or sink.count)
    assert scheduler.running == 0 and scheduler.waiting == 0


def test_a_kept_cache_is_taken_up_and_gives_the_same_tokens() -> None:
    toy, random = Toy(), np.random.default_rng(0)
    scheduler = make(toy, prefill_chunk=100)
    prompt = random.standard_normal((50, WIDTH))
    first = Greedy(5)
    submit(scheduler, prompt, first)
    assert first.done.wait(10)
    answered = np.concatenate([prompt, TABLE[first.tokens[:-1]]])
    longer = np.concatenate([answered, random.standard_normal((7, WIDTH))])
    second = Greedy(5)
    job = submit(scheduler, longer, second)
    assert second.done.wait(10)
    scheduler.stop()
    assert job.reused == len(answered) and toy.calls[-5] == -7  # only the new tokens were computed
    assert second.tokens == alone(longer, 5)


def test_answers_under_way_wait_for_one_chunk_of_a_long_prompt_only() -> None:
    toy = Toy()
    scheduler = make(toy, prefill_chunk=10)
    toy.gate = threading.Event()
    short, long = Greedy(30), Greedy(2)
    submit(scheduler, np.ones((5, WIDTH)), short)
    submit(scheduler, np.random.default_rng(0).standard_normal((95, WIDTH)), long)
    toy.gate.set()
    scheduler.stop()
    between = toy.calls[toy.calls.index(-10) : toy.calls.index(-5, 1)]
    assert between[0::2] == [-10] * 9 and between[1::2] == [1] * 9  # a token after every chunk
    assert long.tokens == alone(np.random.default_rng(0).standard_normal((95, WIDTH)), 2)


def test_a_full_queue_and_what_never_fits_are_refused() -> None:
    toy = Toy()
    toy.gate = threading.Event()
    scheduler = make(toy, max_slots=1, max_waiting=1, max_positions=300)
    sinks = [Greedy(1) for _ in range(3)]
    submit(scheduler, np.ones((3, WIDTH)), sinks[0])
    while scheduler.running == 0:
        threading.Event().wait(0.001)
    submit(scheduler, np.ones((3, WIDTH)), sinks[1])
    with pytest.raises(QueueFullError):
        submit(scheduler, np.ones((3, WIDTH)), sinks[2])
    scheduler.check(200, 101)
    with pytest.raises(RedipruneError, match="--cache-memory"):
        scheduler.check(200, 102)
    toy.gate.set()
    scheduler.stop()
    with pytest.raises(StoppedError):
        submit(scheduler, np.ones((3, WIDTH)), sinks[2])


def test_a_fault_ends_its_request_alone() -> None:
    class Bad(Greedy):
        def token(self, logits: np.ndarray) -> int | None:
            if len(self.tokens) == 2:
                raise ValueError("no such token")
            return super().token(logits)

    scheduler = make(Toy())
    good, bad = Greedy(10), Bad(10)
    prompts = np.random.default_rng(0).standard_normal((2, 20, WIDTH))
    submit(scheduler, prompts[0], bad)
    submit(scheduler, prompts[1], good)
    scheduler.stop()
    assert isinstance(bad.error, ValueError) and good.error is None
    assert good.tokens == alone(prompts[1], 10)


def test_positions_of_their_own_go_with_every_token() -> None:
    """Requests with and without positions of their own, decoded together: each as if it were alone."""
    random = np.random.default_rng(3)
    scheduler, asked = make(Toy()), []
    for number in range(8):
        embeds, sink = random.standard_normal((21, WIDTH)), Greedy(9)
        gaps = np.sort(random.choice(70, 21, replace=False))[None]
        positions = Positions(gaps) if number % 2 else None
        submit(scheduler, embeds, sink, positions)
        asked.append((embeds, sink, positions))
    for embeds, sink, positions in asked:
        assert sink.done.wait(10) and sink.error is None
        assert sink.tokens == alone(embeds, 9, positions)
    scheduler.stop()


def test_a_cache_is_not_taken_up_at_other_positions() -> None:
    embeds = np.random.default_rng(4).standard_normal((40, WIDTH))
    near, far = Positions(np.arange(40)[None]), Positions(np.r_[np.arange(24), np.arange(50, 66)][None])
    scheduler, reused = make(Toy()), []
    for positions in (near, far, near, None):
        sink = Greedy(3)
        job = submit(scheduler, embeds, sink, positions)
        assert sink.done.wait(10) and sink.tokens == alone(embeds, 3, positions)
        reused.append(job.reused)
    scheduler.stop()
    assert reused == [0, 24, 24, 38]  # the second wrote over what it took up


def test_no_memory_for_the_cache_costs_those_who_have_it_and_no_others() -> None:
    class Small(Toy):
        """There is none for 4 slots of 512; half of it is taken when that shows."""

        def resize(self, slots: int, length: int, used: int) -> None:
            if slots * length > 4 * 256:
                self.cache = self.cache[:, :3]
                raise MemoryError
            super().resize(slots, length, used)

    toy = Small()
    scheduler = make(toy)
    toy.gate = threading.Event()
    prompts = np.random.default_rng(0).standard_normal((3, 20, WIDTH))
    running, large, after = Greedy(30), Greedy(300), Greedy(10)
    for prompt, sink in zip(prompts, (running, large, after), strict=True):
        submit(scheduler, prompt, sink)
    toy.gate.set()
    scheduler.stop()
    assert isinstance(running.error, MemoryError) and isinstance(large.error, MemoryError)
    assert after.error is None and after.tokens == alone(prompts[2], 10)
    assert scheduler.running == 0 and scheduler.waiting == 0


def test_a_sink_that_cannot_even_be_told_ends_nobody_else() -> None:
    class Deaf(Greedy):
        def token(self, logits: np.ndarray) -> int | None:
            raise ValueError("no such token")

        def failed(self, error: Exception) -> None:
            raise RuntimeError("the event loop is closed")

    scheduler = make(Toy())
    after = Greedy(5)
    submit(scheduler, np.ones((3, WIDTH)), Deaf(5))
    submit(scheduler, np.ones((4, WIDTH)), after)
    scheduler.stop()
    assert after.tokens == alone(np.ones((4, WIDTH)), 5)


def test_deepstack_goes_with_its_tokens_and_tells_caches_apart() -> None:
    """What is added behind the first layers counts: here it is added to the embeddings."""
    random = np.random.default_rng(5)
    embeds, none = random.standard_normal((37, WIDTH)), np.zeros((2, 37, WIDTH))
    some = none.copy()
    some[:, 20:30] = random.standard_normal((2, 10, WIDTH))
    scheduler, reused = make(Toy()), []
    for deepstack in (none, some, some):
        sink = Greedy(4)
        job = Job(embeds, 4, sink, deepstack=deepstack)
        sink.job = job
        scheduler.submit(job)
        assert sink.done.wait(10) and sink.error is None
        assert sink.tokens == alone(embeds + deepstack.sum(0), 4)
        reused.append(job.reused)
    scheduler.stop()
    assert reused == [0, 20, 35]


def test_a_text_beside_pictures_takes_up_no_cache_of_theirs() -> None:
    embeds = np.random.default_rng(6).standard_normal((30, WIDTH))
    scheduler, reused = make(Toy()), []
    for deepstack in (np.zeros((2, 30, WIDTH)), None, None):
        sink = Greedy(3)
        job = Job(embeds, 3, sink, deepstack=deepstack)
        sink.job = job
        scheduler.submit(job)
        assert sink.done.wait(10) and sink.error is None and sink.tokens == alone(embeds, 3)
        reused.append(job.reused)
    scheduler.stop()
    assert reused == [0, 0, 28]
