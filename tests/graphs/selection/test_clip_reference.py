"""The selection over a whole clip in eager PyTorch, held to its definition in float64."""

import math

import numpy as np
import pytest
import torch
from rediprune.graphs.selection.clip_reference import first_identical, select_clip_tokens
from rediprune.graphs.selection.reference import select_tokens, unit_tokens


def by_definition(features, query, count, alpha, least, threshold=-math.inf):
    """The choice in float64, with all similarities at once and the minimum taken anew for each pick."""
    frames, patches, _ = features.shape
    tokens = torch.nn.functional.normalize(features.double().flatten(0, 1), dim=1)
    relevance = tokens @ torch.nn.functional.normalize(query.double(), dim=0)
    distance = 1 - tokens @ tokens.T
    picked = [int(relevance.argmax())]
    while len(picked) < frames * count:
        missing = [max(0, least - sum(p // patches == f for p in picked)) for f in range(frames)]
        score = distance[picked].amin(dim=0) + alpha * relevance
        score[picked] = -math.inf
        spent = score.max() < threshold
        if spent and not sum(missing):
            break
        if spent or frames * count - len(picked) <= sum(missing):
            score[[t for t in range(len(score)) if not missing[t // patches]]] = -math.inf
        picked.append(int(score.argmax()))
    return sorted(picked)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_greedy_choice_over_all_frames(seed):
    random = np.random.default_rng(seed)
    frames, patches = int(random.integers(1, 6)), int(random.integers(2, 13))
    features = torch.tensor(random.standard_normal((frames, patches, 8)), dtype=torch.float32)
    query = torch.tensor(random.standard_normal(8), dtype=torch.float32)
    count = int(random.integers(1, patches + 1))
    least, alpha = int(random.integers(1, count + 1)), float(random.choice([0.0, 0.5]))
    threshold = float(random.choice([-math.inf, 0.3, 0.8, 5.0]))
    found = select_clip_tokens(features, query, count, alpha, least, threshold)
    assert found.dtype == torch.int64
    assert found.tolist() == by_definition(features, query, count, alpha, least, threshold)
    per_frame = torch.bincount(found // patches, minlength=frames)
    assert per_frame.min() >= least
    assert len(found) == frames * count or threshold > -math.inf


@pytest.mark.parametrize("count", [1, 7, 20])
def test_of_one_frame_it_is_the_choice_of_that_frame(count):
    generator = torch.Generator().manual_seed(count)
    features, query = torch.randn(1, 20, 16, generator=generator), torch.randn(16, generator=generator)
    assert torch.equal(select_clip_tokens(features, query, count), select_tokens(features, query, count)[0])


def test_a_frame_that_repeats_another_gets_only_its_least():
    frame, other = torch.eye(12)[:6], torch.eye(12)[6:]
    found = select_clip_tokens(torch.stack([frame, frame, other]), torch.ones(12), 4, alpha=0.0, least=1)
    assert torch.bincount(found // 6).tolist() == [6, 1, 5]  # the second gets what it is owed, the third less by one


def test_a_threshold_ends_the_choice_where_nothing_new_is_left():
    frame = torch.eye(8)[:3].repeat(4, 1)  # three distinct tokens, four times each
    found = select_clip_tokens(torch.stack([frame, frame]), torch.zeros(8), 12, alpha=0.0, least=2, threshold=0.5)
    assert found.tolist() == [0, 1, 2, 12, 13]  # the three of them, and the two that the second frame is owed


def test_identical_tokens_tie_whatever_their_frame():
    row = torch.randn(16, generator=torch.Generator().manual_seed(0))
    found = select_clip_tokens(row.expand(3, 5, 16), torch.randn(16), 2, least=1)
    assert found.tolist() == [0, 1, 2, 3, 5, 10]  # from 5 on what the other frames are owed


def test_first_identical_names_the_lowest_index():
    random = torch.Generator().manual_seed(2)
    rows = torch.randn(4, 16, generator=random)
    features = rows[[2, 0, 1, 0, 2, 3, 0]][None]
    unit, relevance = unit_tokens(features, torch.randn(16, generator=random))
    assert first_identical(unit[0], relevance[0]).tolist() == [0, 1, 2, 1, 0, 5, 1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"least": 0}, "min_per_frame must lie between 1 and the 3"),
        ({"least": 4}, "min_per_frame must lie between 1 and the 3"),
        ({"least": 1.0}, "min_per_frame must lie between 1 and the 3"),
        ({"threshold": math.nan}, "threshold must be finite"),
        ({"threshold": math.inf}, "threshold must be finite"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        select_clip_tokens(torch.ones(2, 5, 4), torch.ones(4), 3, **settings)


def test_nothing_as_large_as_all_pairs_is_made():
    """64 frames of 576 tokens: all pairs would be 5.4 GB."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 576, 4, generator=generator)
    assert len(select_clip_tokens(features, torch.randn(4, generator=generator), 1)) == 64
