"""Seconds to the first token of whole bundles that take turns in one process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from ...runtime.pipeline import Pipeline
from ..validate.sample_media import sample_picture

_QUESTION = (
    "Look at the picture closely and say in one sentence what is left of the middle, and in which colours it is."
)
_TURNS = 3


def first_token_seconds(
    bundles: Mapping[str, tuple[Path, str]], keeps: Sequence[float], threads: int
) -> dict[tuple[str, float], float]:
    """Median seconds to the first token about a made picture, features not cached.

    Args:
        bundles: by name the folder, and what runs its stages.
        keeps: ratios of visual tokens.
        threads: of every stage; 0 leaves it to the backend.

    Returns:
        (name, keep) → seconds.
    """
    pipelines = {
        name: Pipeline.load(folder, backend, threads=threads, cache_bytes=0)
        for name, (folder, backend) in bundles.items()
    }
    picture = sample_picture()
    taken: dict[tuple[str, float], list[float]] = {}
    for turn in range(_TURNS + 1):
        for keep in keeps:
            for name, pipeline in pipelines.items():
                answer = pipeline.generate(_QUESTION, [picture], keep=keep, max_new_tokens=1, temperature=0)
                if turn:  # the first warms up
                    taken.setdefault((name, keep), []).append(answer.timings["time_to_first_token"])
    return {asked: median(seconds) for asked, seconds in taken.items()}
