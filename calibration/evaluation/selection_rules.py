"""Other ways to drop visual tokens, to hold ReDiPrune against: each is a session that takes the place of a stage's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ...runtime.backends.arrays import Array
from ...runtime.backends.session import StageSession
from ...runtime.errors import RedipruneError
from ...runtime.pipeline import Pipeline

# So large that distance no longer counts: the K most relevant tokens.
_RELEVANCE_ONLY = 1e6

# Name → α for the select stage (None: the request's own), or a way to choose without it.
ALPHAS: dict[str, float | None] = {"rediprune": None, "diversity": 0.0, "relevance": _RELEVANCE_ONLY}
RULES = (*ALPHAS, "random", "uniform", "pool2x2")

Choose = Callable[[np.ndarray, int], np.ndarray]  # features [F,P,C] and K → indices [F,K], ascending


@contextmanager
def using_rule(pipeline: Pipeline, rule: str, seed: int | Sequence[int] = 0) -> Iterator[float | None]:
    """Let a pipeline choose tokens by a rule, within the block.

    Args:
        pipeline: the pipeline.
        rule: "rediprune"; "diversity" (α = 0); "relevance" (the most relevant tokens); "random"; "uniform" (evenly
            over the grid); "pool2x2" (nothing dropped, each 2 × 2 of projected tokens averaged; needs keep 1).
        seed: of "random".

    Raises:
        RedipruneError: a rule that the family's pictures do not allow.

    Yields:
        The α to ask with, None for the default.
    """
    dynamic = any(spec.dynamic for spec in pipeline.bundle.manifest.modalities.values())
    if dynamic and rule in ("uniform", "pool2x2"):
        raise RedipruneError(
            f"rule '{rule}' needs a grid of one size, and {pipeline.bundle.manifest.family_name} has one for each picture; "
            "leave it out of --rules"
        )
    if rule == "pool2x2" and any(spec.mixed_output for spec in pipeline.bundle.manifest.modalities.values()):
        raise RedipruneError(
            f"rule '{rule}' needs a grid behind the projector, and {pipeline.bundle.manifest.family_name} projects patches that "
            "it mixes; leave it out of --rules"
        )
    if rule in ALPHAS:
        yield ALPHAS[rule]
    elif rule == "pool2x2":
        grids = {spec.patches: (spec.leading, spec.rows) for spec in pipeline.bundle.manifest.modalities.values()}
        with pipeline.replaced(project=_PooledProject(pipeline.stage("project"), grids)):
            yield None
    else:
        with pipeline.replaced(select=RuleSelect(random_tokens(seed) if rule == "random" else uniform_tokens)):
            yield None


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
        indices = self.choose(features, int(np.asarray(inputs["num_keep"])))
        return {"indices": indices, "kept": np.take_along_axis(features, indices[:, :, None], axis=1)}


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
