"""What a load test found, as a Markdown table and as one document."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from .load_requests import LoadTest
from .load_run import Step

_HEAD = "| keep | clients | requests/s | tokens/s | first token p50 | p95 | p99 | answer p50 | p95 | failed |"


def load_document(url: str, asked: LoadTest, steps: Sequence[Step]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {"rediprune": version("rediprune"), "url": url, "plan": asdict(asked), "steps": [s.figures() for s in steps]}


def load_table(asked: LoadTest, steps: Sequence[Step]) -> str:
    """A Markdown table of the steps, milliseconds but for the rates, and how the keep ratios compare."""
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    for step in steps:
        told = step.figures()
        first, whole = told["time_to_first_token"], told["latency"]
        cells = [f"{step.keep:g}", str(step.clients), f"{told['requests_per_second']:.2f}"]
        cells.append(f"{told['tokens_per_second']:.1f}")
        cells += [_milliseconds(first[name]) for name in ("p50", "p95", "p99")]
        cells += [_milliseconds(whole[name]) for name in ("p50", "p95")]
        cells.append(str(step.failures.total()))
        lines.append("| " + " | ".join(cells) + " |")
    compared = _compared(asked, steps)
    failures = [f"- {count} × {what}" for step in steps for what, count in step.failures.items()]
    return "\n".join([*lines, *([""] if compared else []), *compared, *([""] if failures else []), *failures])


def _compared(asked: LoadTest, steps: Sequence[Step]) -> list[str]:
    """The last keep ratio against the first, for every number of clients."""
    if len(asked.keeps) < 2:
        return []
    rates = {(step.keep, step.clients): step.figures()["requests_per_second"] for step in steps}
    first, last = asked.keeps[0], asked.keeps[-1]
    ratios = [(n, rates[last, n] / rates[first, n]) for n in asked.clients if rates.get((first, n))]
    told = ", ".join(f"{ratio:.2f} with {n}" for n, ratio in ratios)
    return [f"Requests/s of keep {last:g} over keep {first:g}, by clients: {told}."] if told else []


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.0f}"
