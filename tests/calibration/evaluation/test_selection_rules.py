"""Selection rules to compare with: each chooses what its name says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rediprune.calibration.evaluation.selection_rules import random_tokens, uniform_tokens, using_rule
from rediprune.runtime import Pipeline, RedipruneError

pytestmark = pytest.mark.calibration

CHOOSING = ("rediprune", "diversity", "relevance", "random", "uniform", "divprune", "cdpruner")


def test_rules_that_are_settings_ask_for_them(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))

    def kept(rule: str, keep: int = 9) -> list[int]:
        with using_rule(pipeline, rule) as settings:
            answer = pipeline.generate("What is red?", [photo, photo], max_new_tokens=1, **{"keep": keep, **settings})
        return [len(frames[0]) for frames in answer.kept]

    assert kept("rediprune") == kept("original") == [9, 9]
    assert sum(kept("clip")) == 18 and kept("clip") != [9, 9]
    with pytest.raises(RedipruneError, match="--keep-auto"):
        kept("auto")


def test_rules_choose_what_they_say(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))

    def kept(rule: str, seed: int = 0) -> np.ndarray:
        with using_rule(pipeline, rule, seed) as settings:
            return pipeline.generate("What is red?", [photo], keep=9, max_new_tokens=1, **settings).kept[0][0]

    sets = {rule: kept(rule) for rule in CHOOSING}
    assert len({tuple(indices) for indices in sets.values()}) == len(CHOOSING)
    assert np.array_equal(kept("random"), kept("random")) and not np.array_equal(kept("random"), kept("random", 1))
    assert np.array_equal(sets["uniform"], uniform_tokens(np.zeros((1, 64, 2)), 9)[0])
    assert len(set(np.diff(sets["uniform"].reshape(3, 3)[0]))) <= 2  # evenly spaced along a row
    for indices in sets.values():
        assert len(set(indices)) == 9 and (np.diff(indices) > 0).all()
    assert np.array_equal(kept("rediprune"), sets["rediprune"])


@pytest.mark.parametrize("seed", [0, (3, 7)])
def test_random_tokens_are_those_of_their_seed(seed: int | tuple[int, int]) -> None:
    features = np.zeros((5, 30, 2))
    chosen = random_tokens(seed)(features, 11)
    assert chosen.shape == (5, 11) and np.array_equal(chosen, random_tokens(seed)(features, 11))
    assert (np.diff(chosen, axis=1) > 0).all() and chosen.min() >= 0 and chosen.max() < 30
    assert len({tuple(frame) for frame in chosen}) == 5  # frames are drawn one by one


def test_pooling_averages_neighbours_and_ends_with_the_block(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    kept = np.random.default_rng(0).standard_normal((2, 64, 32)).astype(np.float32)
    whole = np.asarray(pipeline.stage("project").run({"kept": kept})["visual_embeds"])
    with using_rule(pipeline, "pool2x2") as settings:
        pooled = np.asarray(pipeline.stage("project").run({"kept": kept})["visual_embeds"])
    grid = whole.reshape(2, 4, 2, 4, 2, -1)  # frames, rows of two, columns of two
    assert settings == {"keep": 1.0}
    assert np.allclose(pooled, grid.mean(axis=(2, 4)).reshape(2, 16, -1), atol=1e-6)
    assert np.array_equal(np.asarray(pipeline.stage("project").run({"kept": kept})["visual_embeds"]), whole)


def test_rules_over_a_grid_are_refused_where_each_picture_has_its_own(bundle_of: Callable[[str], Path]) -> None:
    pipeline = Pipeline.load(bundle_of("qwen3_vl"), lazy=True)
    for rule in ("uniform", "pool2x2"):
        with (
            pytest.raises(
                RedipruneError, match=f"rule '{rule}' needs a grid of one size, and Qwen3-VL has one for each"
            ),
            using_rule(pipeline, rule),
        ):
            pass
    with using_rule(pipeline, "random") as settings:
        assert settings == {}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["pool2x2", "downsample"])
def test_a_rule_behind_the_projector_is_refused_where_patches_are_mixed_there(
    rule: str, bundle_of: Callable[[str], Path]
) -> None:
    with (
        pytest.raises(
            RedipruneError, match=f"'{rule}' needs a grid behind the projector, and LLaVA-OneVision projects"
        ),
        using_rule(Pipeline.load(bundle_of("llava_onevision"), lazy=True), rule),
    ):
        pass
