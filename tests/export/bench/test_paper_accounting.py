"""The paper's accounting: the published formula, and a count that leaves nothing out."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.bench.multiply_adds import multiply_adds
from rediprune.export.bench.paper_accounting import (
    LLAVA_NEXT_VIDEO_7B,
    Asked,
    account,
    accounting_page,
    claim,
    geometry_of,
    operations,
)
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.graphs.selection.counts import num_kept
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import Bundle


@pytest.mark.parametrize("name", ["llava", "llava_qwen2"])
@pytest.mark.parametrize("keep", [1.0, 0.15])
def test_the_exact_count_is_that_of_pytorchs_counter(
    bundle_of: Callable[[str], Path], checkpoint_of: Callable[[str], Path], name: str, keep: float
) -> None:
    geometry = geometry_of(Bundle.open(bundle_of(name)))
    counted = operations(geometry, 1, 11, keep)
    kept = num_kept(geometry.patches, keep)
    expected = multiply_adds(Checkpoint.open(checkpoint_of(name)).skeleton("fp32"), "image", 1, kept, 11)
    assert counted.tokens == 11 + kept
    assert (counted.vision, counted.project, counted.prefill) == tuple(
        expected[stage] for stage in ("vision", "project", "prefill")
    )


def test_the_published_formula_worked_out_by_hand() -> None:
    # n = 100: 4 · 100 · 4096² + 2 · 100² · 4096 + 2 · 100 · 4096 · 11008 = 15,810,560,000, of each of 32 layers
    assert LLAVA_NEXT_VIDEO_7B.published(100) == 32 * 15_810_560_000


def test_the_abstracts_claim_holds_of_the_decoder_and_of_many_frames() -> None:
    ratios = {(row["frames"], row["text"]): row for row in claim()}
    assert ratios[8, 100]["published_ratio"] < 6 < ratios[32, 40]["published_ratio"]
    assert all(row["all_ratio"] < row["decoder_ratio"] for row in claim())
    assert all(row["selector_share"] < 0.01 for row in claim())


def test_a_bundle_is_timed_and_its_page_written(bundle_of: Callable[[str], Path], photo: Path) -> None:
    asked = Asked("What is red?", [str(photo)], [], 8, (1.0, 0.15), new_tokens=3, runs=2, threads=1)
    document = account(Bundle.open(bundle_of("llava")), asked)
    whole, pruned = document["rows"]
    assert whole["select"] == 0 < pruned["select"] and pruned["exact"] < whole["exact"]
    for row in document["rows"]:
        median, least, most = row["prefill_seconds"]
        assert 0 < least <= median <= most and row["end_to_end_seconds"][0] > 0
        assert row["peak_memory_bytes"] > 0
    page = accounting_page(document, "rediprune bench x", "a machine")
    assert "rediprune bench x" in page and "| 0.15 |" in page and page.count("\n| ") > 10


@pytest.mark.family
def test_other_families_are_refused(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(RedipruneError, match="not Qwen3-VL"):
        geometry_of(Bundle.open(bundle_of("qwen3_vl")))
