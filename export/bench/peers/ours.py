"""A bundle on one of its backends."""

from collections.abc import Callable
from typing import Any


def load(bundle: str, backend: str, threads: int) -> Callable[[dict[str, Any]], dict[str, float]]:
    """See `turn.take_turn`."""
    from ....runtime.cli.arguments import hide_torch

    hide_torch()  # as `rediprune run` does
    from ....runtime.pipeline import Pipeline

    pipeline = Pipeline.load(bundle, backend, threads=threads, cache_bytes=0)

    def ask(request: dict[str, Any]) -> dict[str, float]:
        answer = pipeline.generate(
            request["question"],
            request["images"],
            request["videos"],
            frames=request["frames"],
            keep=request["keep"],
            max_new_tokens=request["new_tokens"],
            temperature=0.0,
        )
        seconds = dict(answer.timings)
        decoded = len(answer.token_ids) - 1
        seconds["decode_token"] = seconds["decode"] / decoded if decoded else 0.0  # the first comes from the prefill
        return seconds | {"tokens": len(answer.token_ids)}

    return ask
