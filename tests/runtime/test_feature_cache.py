"""Features are remembered within a bound, and encoded once however many ask."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.feature_cache import Encoded, FeatureCache


def entry(size):
    return Encoded(np.zeros(size, np.uint8))


def held(cache, keys):
    """Which keys the cache holds; asking makes them recent, the last one most."""
    return [key for key in keys if cache.get(("stage", key)) is not None]


def test_cache_returns_what_was_put():
    cache = FeatureCache(100)
    features = entry(10)
    cache.put(("stage", "a"), features)
    assert cache.get(("stage", "a")) is features
    assert cache.get(("stage", "b")) is None
    assert cache.get(("other", "a")) is None
    assert cache.size == 10


def test_cache_is_bounded_in_bytes():
    cache = FeatureCache(100)
    for key in "abcd":
        cache.put(("stage", key), Encoded(np.zeros(3), np.zeros(2)))  # 40 bytes
        assert cache.size <= 100
    assert held(cache, "abcd") == ["c", "d"]
    assert cache.size == 80
    cache.put(("stage", "e"), entry(100))
    assert held(cache, "abcde") == ["e"]
    assert cache.size == 100


def test_the_least_recently_used_goes():
    cache = FeatureCache(30)
    for key in "abc":
        cache.put(("stage", key), entry(10))
    cache.get(("stage", "a"))
    cache.put(("stage", "d"), entry(10))
    assert held(cache, "bacd") == ["a", "c", "d"]
    cache.put(("stage", "e"), entry(15))  # two have to go
    assert held(cache, "abcde") == ["d", "e"]
    assert cache.size == 25


def test_what_is_larger_than_the_bound_is_not_kept_and_drives_nothing_out():
    cache = FeatureCache(20)
    cache.put(("stage", "a"), entry(20))
    cache.put(("stage", "b"), entry(21))
    assert held(cache, "ab") == ["a"]
    assert cache.size == 20


def test_the_same_key_is_counted_once():
    cache = FeatureCache(30)
    first = entry(20)
    cache.put(("stage", "a"), first)
    cache.put(("stage", "a"), entry(20))
    assert cache.size == 20
    assert cache.get(("stage", "a")) is first


def test_no_bytes_no_cache():
    cache = FeatureCache(0)
    cache.put(("stage", "a"), entry(1))
    assert cache.get(("stage", "a")) is None
    assert cache.size == 0


@given(
    limit=st.integers(0, 40),
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20), st.booleans()), max_size=40),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_cache_equals_a_plain_list(limit, steps):
    cache, model = FeatureCache(limit), []  # (key, size), least recently used first
    for key, size, put in steps:
        known = next((item for item in model if item[0] == key), None)
        if put:
            cache.put(("stage", key), entry(size))
            if known is None and size <= limit:
                model.append((key, size))
                while sum(n for _, n in model) > limit:
                    model.pop(0)
        else:
            found = cache.get(("stage", key))
            assert (None if found is None else found.nbytes) == (known and known[1])
            if known:
                model.remove(known)
                model.append(known)
        assert cache.size == sum(n for _, n in model) <= limit


# ---------------------------------------------------------------------------------------------------------- threads

THREADS = 8


def test_what_several_ask_for_at_once_is_encoded_once():
    cache, encoded, start = FeatureCache(100), [], Barrier(THREADS)

    def encode():
        encoded.append(True)
        time.sleep(0.05)
        return entry(10)

    def ask(number):
        start.wait()
        return cache.get_or_encode(("stage", "a"), encode)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(ask, range(THREADS)))
    assert len(encoded) == 1 and len({id(features) for features, _ in found}) == 1
    assert sorted(fresh for _, fresh in found) == [False] * (THREADS - 1) + [True]


def test_other_pictures_do_not_wait():
    cache, both = FeatureCache(100), Barrier(2, timeout=10)

    def encode():
        both.wait()  # not passed unless the other is being encoded too
        return entry(10)

    with ThreadPoolExecutor(2) as pool:
        assert all(fresh for _, fresh in pool.map(lambda key: cache.get_or_encode(("stage", key), encode), "ab"))


def test_who_waits_tries_where_the_first_fails():
    cache, tries, start = FeatureCache(100), [], Barrier(3)

    def encode():
        tries.append(True)
        time.sleep(0.05)
        if len(tries) == 1:
            raise MemoryError
        return entry(10)

    def ask(number):
        start.wait()
        try:
            return cache.get_or_encode(("stage", "a"), encode)[1]
        except MemoryError:
            return None

    with ThreadPoolExecutor(3) as pool:
        assert sorted(map(str, pool.map(ask, range(3)))) == ["False", "None", "True"]
    assert len(tries) == 2


def test_without_room_everyone_encodes():
    cache, encoded = FeatureCache(0), []

    def encode():
        encoded.append(True)
        return entry(10)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda number: cache.get_or_encode(("stage", "a"), encode), range(THREADS)))
    assert len(encoded) == THREADS and all(fresh for _, fresh in found) and cache.size == 0


@pytest.mark.parametrize("limit", [0, 35, 1000])
def test_the_bound_holds_whoever_writes(limit):
    """Before there was a lock, threads met entries that others had removed: KeyError, and a size that was off."""
    cache = FeatureCache(limit)

    def work(number):
        random = np.random.default_rng(number)
        for _ in range(3000):
            key, size = ("stage", int(random.integers(12))), int(random.integers(1, 12))
            features, _ = cache.get_or_encode(key, lambda size=size: entry(size))
            assert 1 <= features.nbytes < 12
            cache.put(key, entry(size))
            cache.get(key)
            assert cache.size <= limit

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert cache.size == sum(features.nbytes for at in range(12) if (features := cache.get(("stage", at))) is not None)
