"""The page of an optimised bundle: what was tried, what was chosen, what came of it."""

from collections.abc import Sequence

from ...calibration.evaluation.markdown import markdown_table
from ...runtime.bundle import PlanRecord, TriedForm
from .optimize import Optimized


def plan_page(made: Optimized, command: str) -> str:
    """The page in Markdown.

    Args:
        made: what came of it.
        command: that did it.
    """
    plan = made.plan
    libraries = ", ".join(f"{name} {number}" for name, number in plan.versions.items())
    parts = [
        f"# {made.bundle.folder.name}: the best engine of {made.source.folder.name} for one machine",
        f"Made by `{command}` on {plan.machine}; {libraries}. Target {plan.target}, budget {plan.budget}.",
        "## Chosen",
        markdown_table(*chosen_rows(plan)),
        "## The whole chain",
        markdown_table(["", ""], [[name, f"{value:.4g}"] for name, value in plan.outcome.items()]),
        "## Tried",
        "Medians of turns taken one after another. Seconds are of one frame of a tower, or of the prefill; the error is "
        "relative, the worst of samples held out.",
        markdown_table(*tried_rows(plan)),
        *(f"{note}." for note in made.notes),
    ]
    return "\n\n".join(parts) + "\n"


def chosen_rows(plan: PlanRecord) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: what each stage runs as."""
    rows = [
        [form.stage, form.precision, form.backend, *_numbers(form), plan.reasons.get(form.stage, "")]
        for form in plan.tried
        if form.chosen
    ]
    return ["stage", "precision", "backend", "ms", "ms/token", "error", "why"], rows


def tried_rows(plan: PlanRecord) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: everything that was measured, the fastest of each stage first."""

    def order(form: TriedForm) -> tuple[str, bool, float]:
        return form.stage, form.seconds is None, form.seconds or 0.0

    rows = [
        [form.stage, form.precision, form.backend, *_numbers(form), f"{form.size / 1e6:.0f}", _verdict(form)]
        for form in sorted(plan.tried, key=order)
    ]
    return ["stage", "precision", "backend", "ms", "ms/token", "error", "MB", ""], rows


def _verdict(form: TriedForm) -> str:
    return "chosen" if form.chosen else form.note


def _numbers(form: TriedForm) -> Sequence[str]:
    milliseconds = [f"{1e3 * taken:.1f}" if taken is not None else "" for taken in (form.seconds, form.per_token)]
    return [*milliseconds, "" if form.error is None else f"{form.error:.2%}"]
