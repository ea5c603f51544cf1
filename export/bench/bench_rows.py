"""Medians, rates and speed-ups of what contenders measured in their turns."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.timing import TIMED_STAGES
from .contenders import Contender

Document = dict[str, Any]


def contender_rows(
    contender: Contender, turns: Sequence[Document], work: Mapping[float, Mapping[str, int]]
) -> list[Document]:
    """One row for each keep ratio: medians over all turns and repeats, and the rates that they make.

    Args:
        contender: who took the turns.
        turns: what `turn.take_turn` returned for each.
        work: keep ratio → multiply-adds of each stage.
    """
    return [
        _row(contender, keep, [answer for turn in turns for answer in turn["answers"][at]], turns, work[keep])
        for at, keep in enumerate(contender.keeps)
    ]


def _row(
    contender: Contender, keep: float, answers: list[Document], turns: Sequence[Document], work: Mapping[str, int]
) -> Document:
    # Without pruning `select` is a look at the ratio.
    named = [key for key in TIMED_STAGES if key in answers[0] and (key != "select" or keep < 1)]
    stages = {key: _median(answers, key) for key in named}
    row = {
        "contender": contender.name,
        "ours": contender.ours,
        "precision": contender.precision,
        "keep": keep,
        "stages": stages,
        "decode_token": _median(answers, "decode_token"),
        "end_to_end": _median(answers, "total"),
        "start_up": statistics.median(turn["start_up"] for turn in turns),
        "peak_memory_bytes": max(turn["peak_memory"] for turn in turns),
        "disk_bytes": contender.disk,
        # Of the stages that are matrix products; a multiply-add is two operations.
        "gflops": {name: 2 * work[name] / stages[name] / 1e9 for name in ("vision", "prefill") if stages.get(name)},
    }
    if contender.whole:
        first = [answer["time_to_first_token"] for answer in answers]
        row |= {
            "time_to_first_token": statistics.median(first),
            "fastest": min(first),
            "slowest": max(first),
            "selector_share": stages.get("select", 0.0) / statistics.median(first),
        }
    if row["decode_token"]:
        row["tokens_per_second"] = 1 / row["decode_token"]
        row["decode_gb_per_second"] = contender.decoder / row["decode_token"] / 1e9
    return row


def _median(answers: Sequence[Document], key: str) -> float:
    return statistics.median(answer[key] for answer in answers)


def speed_ups(rows: Sequence[Document]) -> Document:
    """How many times sooner the first token comes, and how many times faster a token is decoded, than by each peer.

    Args:
        rows: of whole pipelines.

    Returns:
        "<ours>, keep <ratio>" → "<peer>, keep <ratio>" → `first_token` and `decode`.
    """
    ours, peers = ([row for row in rows if row["ours"] == own] for own in (True, False))
    return {
        _label(row): {
            _label(peer): {
                "first_token": peer["time_to_first_token"] / row["time_to_first_token"],
                "decode": peer["decode_token"] / row["decode_token"] if row["decode_token"] else 0.0,
            }
            for peer in peers
        }
        for row in ours
    }


def _label(row: Document) -> str:
    return f"{row['contender']}, keep {row['keep']:g}"
