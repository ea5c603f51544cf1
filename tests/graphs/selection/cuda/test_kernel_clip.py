"""The kernels of the choice over a whole clip, their code compiled for the CPU, choose what the eager selection does."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from rediprune.graphs.selection.clip_reference import select_clip_tokens
from rediprune.graphs.selection.cuda import launcher
from rediprune.graphs.selection.query_vector import match_width

from ..clip_cases import CHANNELS, KINDS, ClipCase, clip_cases

pytestmark = pytest.mark.cuda

HostLibrary = Callable[[str], ctypes.CDLL]


def chosen(library: ctypes.CDLL, case: ClipCase) -> np.ndarray:
    frames, patches, _ = case.features.shape
    features = np.ascontiguousarray(case.features)
    query = match_width(torch.tensor(case.query), CHANNELS).numpy()
    indices = np.full(frames * case.count, -1, np.int64)
    made = library.host_select_clip(
        features.ctypes.data_as(ctypes.c_void_p),
        query.ctypes.data_as(ctypes.c_void_p),
        frames,
        patches,
        CHANNELS,
        case.count,
        ctypes.c_float(case.alpha),
        case.least,
        ctypes.c_float(case.threshold),
        indices.ctypes.data_as(ctypes.c_void_p),
    )
    assert (indices[made:] == -1).all()
    return indices[:made]


def check(library: ctypes.CDLL, kind: str, number: int, largest: int) -> None:
    for case in clip_cases(kind, number, largest):
        expected = select_clip_tokens(torch.tensor(case.features), torch.tensor(case.query), *case.settings)
        assert np.array_equal(chosen(library, case), expected.numpy()), case


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_eager(host_library: HostLibrary, kind: str) -> None:
    check(host_library("host_clip"), kind, number=6, largest=7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_eager_in_many_cases(host_library: HostLibrary, kind: str) -> None:
    check(host_library("host_clip"), kind, number=170, largest=10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 5}, "between 1 and the 4 tokens"),
        ({"count": 2, "least": 3}, "min_per_frame"),
        ({"count": 2, "threshold": float("nan")}, "threshold"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_gpu_is_touched(settings: dict[str, float], said: str) -> None:
    kernels = object.__new__(launcher.SelectionKernels)  # no GPU here to load them on
    sizes = {"frames": 1, "patches": 4, "channels": 8, "dtype": "float32"}
    with pytest.raises(ValueError, match=said):
        kernels.select_clip(0, 0, 0, 0, **sizes, settings=launcher.ClipSettings(**settings))
