"""Features are remembered within a bound, and encoded once however many ask."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.feature_cache import FeatureCache


def entry(size):
    return np.zeros(size, np.uint8)


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
        cache.put(("stage", key), np.zeros(5, np.float64))  # 40 bytes
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
