"""Pictures of a bench: time to first token against keep, bars per stage, growth."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ...runtime.timing import TIMED_STAGES


def plot_keep(document: dict[str, Any], path: Path) -> None:
    """Time to first token against the ratio of kept tokens; a peer that does not prune is a level line."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in dict.fromkeys(row["contender"] for row in document["rows"]):
        rows = sorted((row for row in document["rows"] if row["contender"] == name), key=lambda row: row["keep"])
        seconds = [row["time_to_first_token"] for row in rows]
        if len(rows) > 1:
            low = [row["time_to_first_token"] - row["fastest"] for row in rows]
            high = [row["slowest"] - row["time_to_first_token"] for row in rows]
            axes.errorbar([row["keep"] for row in rows], seconds, (low, high), marker="o", capsize=3, label=name)
        else:
            axes.axhline(seconds[0], linestyle="--", color=axes._get_lines.get_next_color(), label=name)  # pyright: ignore
    axes.set(xlabel="kept visual tokens, ratio", ylabel="time to first token, s", xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_stages(document: dict[str, Any], path: Path) -> None:
    """One bar per contender and keep ratio, its stages stacked."""
    rows = document["rows"]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.35 * len(rows)))
    labels = [f"{row['contender']}, keep {row['keep']:g}" for row in rows]
    left = [0.0] * len(rows)
    for stage in TIMED_STAGES:
        widths = [row["stages"].get(stage, 0.0) for row in rows]
        axes.barh(labels, widths, left=left, label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="seconds to the first token")
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_growth(document: dict[str, Any], path: Path) -> None:
    """Time to first token, vision, selector and prefill over frames, keep and prompt."""
    grown = document["growth"]
    figure, all_axes = plt.subplots(1, 3, figsize=(12, 3.6))
    titles = {"frames": "frames", "keep": "kept visual tokens, ratio", "prompt": "tokens of the question"}
    for axes, (name, title) in zip(all_axes, titles.items(), strict=True):
        sizes = sorted(grown[name], key=float)
        for stage in ("time_to_first_token", "vision", "prefill", "select"):
            axes.plot(
                [float(size) for size in sizes],
                [grown[name][size][stage] for size in sizes],
                marker="o",
                label=stage.replace("_", " "),
            )
        axes.set(xlabel=title, ylabel="seconds", yscale="log")
        if name != "keep":
            axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    all_axes[0].legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
