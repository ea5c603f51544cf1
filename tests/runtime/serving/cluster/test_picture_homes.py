"""Where requests about a picture go."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.serving.cluster.picture_homes import PictureHomes

BATCH = 2
OFTEN = 2 * BATCH


class Front:
    """Homes of three replicas, and a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.homes = PictureHomes[str](BATCH, lambda: self.now)

    def ranked(self, key: str | None, ring: str = "abc", **under_way: int) -> list[str]:
        return self.homes.ranked(key, ring, sorted({*ring, *under_way}), Counter(under_way).__getitem__)

    def ask(self, ring: str = "abc", **under_way: int) -> str:
        """Ask about the picture `k`: who took the request."""
        first = self.ranked("k", ring, **under_way)[0]
        self.homes.took("k", first)
        return first

    def ask_often(self) -> None:
        for _ in range(OFTEN):
            self.ask()


@pytest.mark.parametrize(
    ("under_way", "place"),
    [
        ({}, "a"),  # nothing under way: where the ring points
        ({"a": 3, "b": 3, "c": 3}, "a"),
        ({"a": 5, "b": 2, "c": 2}, "b"),
        ({"a": 4, "b": 4, "c": 1}, "c"),
        ({"a": 4, "b": 4, "c": 4, "d": 0}, "d"),  # of no part of the ring, but idle
    ],
)
def test_a_new_picture_passes_by_who_has_its_share(under_way: dict[str, int], place: str) -> None:
    assert Front().ask(**under_way) == place


def test_a_picture_that_is_seldom_asked_about_stays_until_two_batches_are_between() -> None:
    front = Front()
    assert front.ask() == "a"
    assert front.ask(a=2 * BATCH - 1) == "a"
    assert front.ask(a=2 * BATCH, b=1, c=1) == "a"
    assert front.ask(a=2 * BATCH, b=1, c=0) == "c"
    assert front.ask(a=2, b=0, c=1) == "c"


def test_one_that_is_asked_about_often_gets_a_further_home_where_least_is_under_way() -> None:
    front = Front()
    front.ask_often()
    assert front.ask(a=2, b=1, c=1) == "a"  # less than a batch between them
    assert front.ask(a=2, b=1, c=0) == "c"
    assert front.ask(a=2, b=0, c=1) == "c"  # of its homes the one with less, not who has least
    assert front.ask(a=2, b=0, c=3) == "a"
    assert front.ask(a=3, b=0, c=3) == "a"  # its second home is new: no third one yet
    front.ask_often()
    assert front.ask(a=3, b=0, c=3) == "b"


def test_only_requests_that_were_taken_count() -> None:
    front = Front()
    front.ask()
    for _ in range(10 * OFTEN):  # tried again and again, while all are full
        assert front.ranked("k", a=3, b=0)[0] == "a"


def test_who_took_a_request_in_place_of_a_full_home_is_a_home() -> None:
    front = Front()
    front.ask()
    front.homes.took("k", "c")
    assert front.ranked("k", a=1) == ["c", "a", "b"]
    front.homes.took("another", "c")  # which nobody placed
    front.homes.took(None, "c")


def test_what_is_no_longer_asked_about_often_goes_back_to_its_first_home() -> None:
    front = Front()
    front.ask_often()
    assert front.ask(a=2) == "b"
    front.ask_often()
    front.now += 601  # it was asked about often till now
    assert front.ask(a=1) == "b"
    front.now += 601
    assert front.ask(a=1) == "a"


def test_how_often_is_counted_of_late() -> None:
    front = Front()
    for _ in range(10 * OFTEN):
        assert front.ask() == "a"
        front.now += 400
    assert front.ask(a=3) == "a"


def test_a_picture_whose_replica_is_gone_is_placed_anew() -> None:
    front = Front()
    assert front.ask() == "a"
    assert front.ask(ring="bc") == "b"
    assert front.ask() == "b"


def test_behind_its_homes_the_others_follow_by_what_they_have_under_way() -> None:
    front = Front()
    assert front.ranked("k") == ["a", "b", "c"]
    assert front.ranked("k", a=3, b=2, c=1) == ["a", "c", "b"]
    front.ask_often()
    assert front.ranked("k", a=3, c=1) == ["b", "a", "c"]
    assert front.ranked("k", a=3, c=1) == ["b", "a", "c"]


def test_without_a_picture_who_has_least_answers() -> None:
    assert Front().ranked(None, a=1, c=1) == ["b", "a", "c"]


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_only_living_replicas_are_named_each_once(replicas: int, seed: int) -> None:
    draw, homes = random.Random(seed), PictureHomes[int](BATCH)
    for _ in range(40):
        living = draw.sample(range(6), replicas)
        under_way = Counter({each: draw.randrange(9) for each in range(6)})
        ring, key = living[: draw.randint(1, replicas)], draw.choice(["p", "q", "r", None])
        ranked = homes.ranked(key, ring, living, under_way.__getitem__)
        assert len(set(ranked)) == len(ranked) and set(ring) <= set(ranked) <= set(living)
        homes.took(key, draw.choice(ranked))


@pytest.mark.parametrize("seed", range(4))
def test_no_replica_is_short_of_work_and_few_pictures_are_encoded_twice(seed: int) -> None:
    """As in a trace: the n-th picture is asked about as often as 1/n says, 32 requests are always under way."""
    draw, homes, replicas = random.Random(seed), PictureHomes[int](8, lambda: 0.0), (0, 1)
    under_way, running, encoded, short = Counter[int](), list[int](), set[tuple[int, int]](), 0
    for picture in draw.choices(range(24), [1 / n for n in range(1, 25)], k=2000):
        if len(running) == 32:
            ended = draw.choice(sorted({*running}))  # both answer as fast: the next that ends is of either
            running.remove(ended)
            under_way[ended] -= 1
            short += min(under_way[0], under_way[1]) < 8
        ring = replicas if picture % 2 else replicas[::-1]
        chosen = homes.ranked(str(picture), ring, replicas, under_way.__getitem__)[0]
        homes.took(str(picture), chosen)
        encoded.add((picture, chosen))
        running.append(chosen)
        under_way[chosen] += 1
    assert short < 100  # of 1,968; 759 to 1,936 where each picture keeps one home
    assert len(encoded) <= 34
