"""Which of the calibrated bundles to take, in a sentence."""

from typing import Any

Document = dict[str, Any]


def recommend(document: Document, tolerance: float) -> str:
    """Recommend a bundle of a report, and say why.

    Of those that lose at most `tolerance` points at every keep ratio the one that answers soonest at the lowest; without
    times the smallest. Where the baseline answers nothing correctly, its answers take the place of the correct ones.

    Args:
        document: a report's rows, the baseline's first, each with answers, size and, if they were taken, times.
        tolerance: points of accuracy that may be lost.
    """
    baseline, *calibrated = document["bundles"]
    lowest = min(baseline["answers"], key=float)
    knows = all(answers["right"] for answers in baseline["answers"].values())

    def loss(row: Document) -> float:
        """Points lost at the ratio where most are."""
        answers = row["answers"].values()
        return 100 * max(-a["change"] if knows else 1 - a["same_answers"] for a in answers)

    def cost(row: Document) -> float:
        return row["times"][lowest]["end_to_end"] if row["times"] else row["disk_bytes"]

    good = [row for row in calibrated if loss(row) <= tolerance]
    measure = "points" if knows else "points of agreement (the source answers no question right)"
    if not good:
        nearest = min(calibrated, key=loss)
        return (
            f"Stay with {baseline['name']}: every calibrated bundle loses more than {tolerance:g} {measure}; the nearest, "
            f"{nearest['name']}, loses {loss(nearest):.1f}."
        )
    best = min(good, key=cost)
    size = best["disk_bytes"] / baseline["disk_bytes"]
    change = "loses nothing" if loss(best) <= 0 else f"loses {loss(best):.1f} {measure} at most"
    if not best["times"]:
        return f"Take {best['name']}: it {change} and has {size:.2f} of the size."
    first, whole = (
        baseline["times"][lowest][key] / best["times"][lowest][key] for key in ("time_to_first_token", "end_to_end")
    )
    if whole < 1:
        return (
            f"Stay with {baseline['name']} for speed: {best['name']} {change} and has {size:.2f} of the size, but answers "
            f"only {whole:.2f} times as fast at keep {lowest}."
        )
    return (
        f"Take {best['name']}: it {change}, has {size:.2f} of the size, and at keep {lowest} its first token comes "
        f"{first:.2f} times and its whole answer {whole:.2f} times as fast as {baseline['name']}'s."
    )
