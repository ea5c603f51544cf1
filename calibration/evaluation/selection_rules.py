"""Other ways to drop visual tokens, to hold ReDiPrune against: each is a session that takes the place of a stage's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...graphs.selection.counts import num_kept
from ...graphs.selection.numpy_selection import match_width, pool_query
from ...runtime.backends.arrays import Array
from ...runtime.backends.session import StageSession
from ...runtime.errors import RedipruneError
from ...runtime.pipeline import Pipeline
from .compared_rules import cdpruner, divprune
from .tower_rules import ClassAttention, DownsampledVision

# So large that distance no longer counts: the K most relevant tokens.
_RELEVANCE_ONLY = 1e6

# Name → settings that a request is asked with besides: ways of the bundle's own to choose.
SETTINGS: dict[str, dict[str, Any]] = {
    "rediprune": {},
    "diversity": {"alpha": 0.0},
    "relevance": {"alpha": _RELEVANCE_ONLY},
    "original": {"positions": "original"},
    "clip": {"scope": "clip"},
    "auto": {"keep": "auto"},
    "auto-clip": {"keep": "auto", "scope": "clip"},
}
RULES = (*SETTINGS, "clip-half", "divprune", "cdpruner", "visionzip", "random", "uniform", "pool2x2", "downsample")
ONE_KEEP = ("auto", "auto-clip", "pool2x2")  # asked once: how many tokens they keep is not for the asker to say

Choose = Callable[[np.ndarray, int], np.ndarray]  # features [F,P,C] and K → indices [F,K], ascending


@contextmanager
def using_rule(
    pipeline: Pipeline, rule: str, seed: int | Sequence[int] = 0, keep: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Let a pipeline choose tokens by a rule, within the block.

    Args:
        pipeline: the pipeline.
        rule: "rediprune"; "diversity" (α = 0); "relevance" (the most relevant tokens); "original" (positions as if nothing were
            dropped); "clip" (one budget for all frames), "clip-half" (half of it for all frames alike); "auto" and "auto-clip"
            (as many as calibrated, for each frame or for all); "divprune", "cdpruner" and "visionzip" (`compared_rules`,
            `tower_rules`); "random"; "uniform" (evenly over the grid); "pool2x2" (nothing dropped, each 2 × 2 of projected
            tokens averaged; needs keep 1); "downsample" (a picture so small that it has as many tokens; needs keep 1).
        seed: of "random".
        keep: the ratio that "downsample" and "clip-half" take.

    Raises:
        RedipruneError: a rule that the family's pictures do not allow.

    Yields:
        Settings to ask with.
    """
    manifest = pipeline.bundle.manifest
    dynamic = any(spec.dynamic for spec in manifest.modalities.values())
    if dynamic and rule in ("uniform", "pool2x2"):
        raise RedipruneError(
            f"rule '{rule}' needs a grid of one size, and {manifest.family_name} has one for each picture; "
            "leave it out of --rules"
        )
    if rule in ("pool2x2", "downsample") and any(spec.mixed_output for spec in manifest.modalities.values()):
        raise RedipruneError(
            f"rule '{rule}' needs a grid behind the projector, and {manifest.family_name} projects patches that it mixes; "
            "leave it out of --rules"
        )
    patches = next(iter(manifest.modalities.values())).patches
    if rule in SETTINGS:
        yield SETTINGS[rule]
    elif rule == "clip-half":
        yield {"scope": "clip", "min_per_frame": max(1, num_kept(patches, keep) // 2)}
    elif rule == "pool2x2":
        grids = {spec.patches: (spec.leading, spec.rows) for spec in manifest.modalities.values()}
        with pipeline.replaced(project=_PooledProject(pipeline.stage("project"), grids)):
            yield {"keep": 1.0}
    elif rule == "downsample":
        with pipeline.replaced(vision=DownsampledVision(pipeline.bundle, num_kept(patches, keep))):
            yield {"keep": 1.0}
    elif rule == "visionzip":
        seeing = ClassAttention(pipeline.bundle, pipeline.stage("vision"))
        with pipeline.replaced(vision=seeing, select=RuleSelect(seeing.choose)):
            yield {}
    elif rule == "cdpruner":
        with pipeline.replaced(select=_CdPrunerSelect()):
            yield {}
    else:
        choose = {"divprune": _divprune, "random": random_tokens(seed), "uniform": uniform_tokens}[rule]
        with pipeline.replaced(select=RuleSelect(choose)):
            yield {}


class RuleSelect:
    """The select stage by a rule that looks at features alone.

    Args:
        choose: the rule.
    """

    batch = 1

    def __init__(self, choose: Choose):
        self.choose = choose

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        features = np.asarray(inputs["features"])  # [frames, patches, channels]
        return _chosen(features, self.choose(features, int(np.asarray(inputs["num_keep"]))))


class _CdPrunerSelect:
    """The select stage by CDPruner, which looks at the question too."""

    batch = 1

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        features, count = np.asarray(inputs["features"]), int(np.asarray(inputs["num_keep"]))
        query = match_width(pool_query(np.asarray(inputs["text_embeds"])), features.shape[2])
        frames = features.astype(np.float32)
        return _chosen(features, np.stack([cdpruner(frame, query, count) for frame in frames]))


def _chosen(features: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
    """What a select stage gives."""
    return {"indices": indices, "kept": np.take_along_axis(features, indices[:, :, None], axis=1)}


def _divprune(features: np.ndarray, count: int) -> np.ndarray:
    return np.stack([divprune(frame, count) for frame in features.astype(np.float32)])


def random_tokens(seed: int | Sequence[int]) -> Choose:
    """Chooses K tokens of each frame of features [F,P,C] at random: [F,K] ascending."""
    random = np.random.default_rng(seed)

    def choose(features: np.ndarray, count: int) -> np.ndarray:
        frames, patches = features.shape[:2]
        return np.sort(np.stack([random.choice(patches, count, replace=False) for _ in range(frames)]), axis=1)

    return choose


def uniform_tokens(features: np.ndarray, count: int) -> np.ndarray:
    """K tokens of each frame spread evenly over its square grid, in near-equal rows: [F,K] ascending."""
    frames, patches = features.shape[:2]
    return np.tile(uniform_grid(patches, count), (frames, 1))


def uniform_grid(patches: int, count: int) -> np.ndarray:
    """`count` tokens spread evenly over the square grid of `patches` tokens, in near-equal rows: [K] ascending."""
    side = int(patches**0.5)
    rows = max(1, min(side, round(count**0.5)))
    chosen = []
    for row in range(rows):
        wanted = count // rows + (row < count % rows)
        places = (np.arange(wanted) + 0.5) * side / wanted
        chosen += [int((row + 0.5) * side / rows) * side + int(place) for place in places]
    return np.sort(np.array(chosen))


class _PooledProject:
    """The project stage followed by the average over 2 × 2 neighbours; an odd last row or column is averaged alone."""

    def __init__(self, inner: StageSession, grids: Mapping[int, tuple[int, int]]):
        self.inner = inner
        self.batch = inner.batch
        self.grids = grids  # tokens of a frame → (leading tokens, rows)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        embeds = np.asarray(self.inner.run(inputs)["visual_embeds"])  # [frames, tokens, width]
        frames, tokens, width = embeds.shape
        leading, rows = self.grids[tokens]
        grid = embeds[:, leading:].reshape(frames, rows, -1, width)
        pooled = [
            grid[:, row : row + 2, column : column + 2].mean(axis=(1, 2))
            for row in range(0, rows, 2)
            for column in range(0, grid.shape[2], 2)
        ]
        return {"visual_embeds": np.concatenate([embeds[:, :leading], np.stack(pooled, axis=1)], axis=1)}
