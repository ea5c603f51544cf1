"""The selection over a whole clip in numpy equals that in PyTorch, index for index."""

import numpy as np
import pytest
import torch
from rediprune.graphs.selection import clip_numpy, clip_reference

from .clip_cases import KINDS, clip_cases


def check(kind: str, number: int, largest: int) -> None:
    for case in clip_cases(kind, number, largest):
        query = case.query
        ours = clip_numpy.select_clip_tokens(case.features, query, *case.settings)
        theirs = clip_reference.select_clip_tokens(torch.tensor(case.features), torch.tensor(query), *case.settings)
        assert ours.dtype == np.int64
        assert np.array_equal(ours, theirs.numpy()), case


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_equals_pytorch(kind: str) -> None:
    check(kind, number=12, largest=12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_equals_pytorch_in_many_cases(kind: str) -> None:
    check(kind, number=250, largest=40)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="min_per_frame must lie between 1 and the 3"):
        clip_numpy.select_clip_tokens(np.ones((2, 5, 4)), np.ones(4), 3, least=4)
