"""Where requests about a picture go."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.serving.cluster.picture_homes import PictureHomes

BATCH = 2


def loads(**under_way: int) -> Counter[str]:
    return Counter(under_way)


def ranked(homes: PictureHomes[str], key: str | None, under_way: Counter[str], ring: str = "abc") -> list[str]:
    return homes.ranked(key, ring, sorted({*ring, *under_way}), under_way.__getitem__)


def first(homes: PictureHomes[str], key: str, under_way: Counter[str], ring: str = "abc") -> str:
    return ranked(homes, key, under_way, ring)[0]


@pytest.mark.parametrize(
    ("under_way", "place"),
    [
        (loads(), "a"),  # nothing under way: where the ring points
        (loads(a=3, b=3, c=3), "a"),
        (loads(a=5, b=2, c=2), "b"),
        (loads(a=4, b=4, c=1), "c"),
        (loads(a=4, b=4, c=4, d=0), "d"),  # of no part of the ring, but idle
    ],
)
def test_a_new_picture_passes_by_who_has_its_share(under_way: Counter[str], place: str) -> None:
    assert first(PictureHomes(BATCH), "k", under_way) == place


def test_a_picture_that_is_seldom_asked_about_stays_whatever_is_under_way() -> None:
    homes = PictureHomes[str](BATCH)
    assert first(homes, "k", loads()) == "a"
    assert [first(homes, "k", loads(a=100)) for _ in range(2 * BATCH - 1)] == ["a"] * (2 * BATCH - 1)


def test_one_that_is_asked_about_often_gets_a_further_home_where_least_is_under_way() -> None:
    homes = PictureHomes[str](BATCH)
    for _ in range(2 * BATCH):
        assert first(homes, "k", loads()) == "a"
    assert first(homes, "k", loads(a=2, b=1, c=1)) == "a"  # less than a batch between them
    assert first(homes, "k", loads(a=2, b=1, c=0)) == "c"
    assert first(homes, "k", loads(a=2, b=0, c=1)) == "c"  # of its homes the one with less, not who has least
    assert first(homes, "k", loads(a=2, b=0, c=3)) == "a"
    assert first(homes, "k", loads(a=9, b=0, c=9)) == "a"  # its second home is new: no third one yet
    for _ in range(2 * BATCH):
        first(homes, "k", loads())
    assert first(homes, "k", loads(a=9, b=0, c=9)) == "b"


def test_a_picture_whose_replica_is_gone_is_placed_anew() -> None:
    homes = PictureHomes[str](BATCH)
    assert first(homes, "k", loads()) == "a"
    assert first(homes, "k", loads(), ring="bc") == "b"
    assert first(homes, "k", loads(), ring="abc") == "b"


def test_behind_its_home_the_others_follow_by_what_they_have_under_way() -> None:
    homes = PictureHomes[str](BATCH)
    assert ranked(homes, "k", loads()) == ["a", "b", "c"]
    assert ranked(homes, "k", loads(a=9, b=2, c=1)) == ["a", "c", "b"]


def test_without_a_picture_who_has_least_answers() -> None:
    homes = PictureHomes[str](BATCH)
    assert ranked(homes, None, loads(a=1, c=1)) == ["b", "a", "c"]


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_only_living_replicas_are_named_each_once(replicas: int, seed: int) -> None:
    draw, homes = random.Random(seed), PictureHomes[int](BATCH)
    for _ in range(40):
        living = draw.sample(range(6), replicas)
        under_way = Counter({each: draw.randrange(9) for each in range(6)})
        ring = living[: draw.randint(1, replicas)]
        ranked = homes.ranked(draw.choice(["p", "q", "r", None]), ring, living, under_way.__getitem__)
        assert len(set(ranked)) == len(ranked) and set(ring) <= set(ranked) <= set(living)


@pytest.mark.parametrize("seed", range(4))
def test_no_replica_is_short_of_work_and_few_pictures_are_encoded_twice(seed: int) -> None:
    """As in a trace: the n-th picture is asked about as often as 1/n says, 32 requests are always under way."""
    draw, homes, replicas = random.Random(seed), PictureHomes[int](8), (0, 1)
    under_way, running, encoded, short = Counter[int](), list[int](), set[tuple[int, int]](), 0
    for picture in draw.choices(range(24), [1 / n for n in range(1, 25)], k=2000):
        if len(running) == 32:
            ended = draw.choice(sorted({*running}))  # both answer as fast: the next that ends is of either
            running.remove(ended)
            under_way[ended] -= 1
            short += min(under_way[0], under_way[1]) < 8
        ring = replicas if picture % 2 else replicas[::-1]
        chosen = homes.ranked(str(picture), ring, replicas, under_way.__getitem__)[0]
        encoded.add((picture, chosen))
        running.append(chosen)
        under_way[chosen] += 1
    assert short < 100  # of 1,968; 759 to 1,936 where each picture keeps one home
    assert len(encoded) <= 32
