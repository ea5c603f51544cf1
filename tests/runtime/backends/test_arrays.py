"""Arrays on the GPU (here: `support.fake_gpu`) are joined, cut and taken as numpy's are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.backends.arrays import concatenate, take
from rediprune.runtime.backends.device import DeviceArray

settings.register_profile("arrays", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("arrays")


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def test_an_array_goes_there_and_back(stream):
    array = numbers(3, 4)
    placed = stream().place(array)
    assert (placed.shape, placed.dtype, placed.ndim, placed.nbytes) == ((3, 4), array.dtype, 2, 48)
    assert np.array_equal(np.asarray(placed), array)
    assert np.asarray(placed, np.float16).dtype == np.float16
    with pytest.raises(ValueError, match="without a copy"):
        np.array(placed, copy=False)


@given(start=st.integers(-9, 9), stop=st.integers(-9, 9))
def test_rows_are_views(stream, start, stop):
    array = numbers(6, 2, 3)
    placed = stream().place(array)
    assert np.array_equal(np.asarray(placed[start:stop]), array[start:stop])
    assert np.array_equal(
        np.asarray(placed[start:stop].reshape(len(array[start:stop]), 6)), array[start:stop].reshape(-1, 6)
    )
    if -6 <= start < 6:
        view = placed[start]
        assert view.shape == (2, 3) and view.memory is placed.memory
        assert np.array_equal(np.asarray(view), array[start])


def test_what_is_no_view_is_refused(stream):
    placed = stream().place(numbers(6, 2))
    with pytest.raises(IndexError):
        placed[6]
    with pytest.raises(IndexError):
        placed[::2]
    with pytest.raises(ValueError, match="cannot be seen"):
        placed.reshape(5, 2)


def test_a_view_keeps_the_memory_and_the_last_one_frees_it(stream):
    gpu = stream()
    placed = gpu.place(numbers(4, 64))
    view = placed[1:3]
    del placed
    gpu.synchronize()
    assert np.array_equal(np.asarray(view), numbers(4, 64)[1:3])
    del view
    gpu.synchronize()
    assert gpu.cuda.blocks == {}


def test_place_copies_only_what_is_not_aligned(stream):
    gpu = stream()
    placed = gpu.place(numbers(4, 5))
    assert gpu.place(placed) is placed
    odd = gpu.place(placed[1:])
    assert odd.memory is not placed.memory and np.array_equal(np.asarray(odd), numbers(4, 5)[1:])
    assert gpu.cuda.copies[2] == [60]


def test_host_memory_is_held_until_the_copy_is_done(stream):
    gpu = stream()
    placed = gpu.place(numbers(1000, 1000))  # nothing else refers to it
    junk = [np.full((1000, 1000), np.nan, np.float32) for _ in range(3)]
    assert np.array_equal(np.asarray(placed), numbers(1000, 1000))
    assert gpu.held == [] and junk


@given(parts=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_concatenate_equals_numpys(stream, parts):
    gpu = stream()
    arrays = [numbers(rows, 3, dtype=np.float16 if half else np.float32) + i for i, (rows, _, half) in enumerate(parts)]
    mixed = [gpu.place(array) if there else array for array, (_, there, _) in zip(arrays, parts, strict=True)]
    whole, expected = concatenate(mixed), np.concatenate(arrays)
    assert isinstance(whole, DeviceArray) == any(there for _, there, _ in parts)
    assert whole.dtype == expected.dtype and np.array_equal(np.asarray(whole), expected)


@given(rows=st.lists(st.integers(0, 6), max_size=12))
def test_take_equals_numpys(stream, rows):
    gpu, table, wanted = stream(), numbers(7, 3), np.array(rows, np.int64)
    assert np.array_equal(take(table, wanted), table[wanted])
    taken = take(gpu.place(table), wanted)
    assert np.array_equal(np.asarray(taken), table[wanted])
    runs = sum(1 for i, row in enumerate(rows) if i == 0 or row != rows[i - 1] + 1)
    assert len(gpu.cuda.copies[3]) == runs
