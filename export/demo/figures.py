"""The pictures of docs/demo.md: samples of the task, training curves, accuracy against kept tokens."""

import argparse
import json
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ...calibration.tasks.drawn_task import samples

DOCS = Path("docs/demo")


def contact_sheet(path: Path) -> None:
    """Eight test pictures with a question each, and two clips as strips of four frames."""
    stills = list({s.number: s for s in samples("test", 0, 12, 0)}.values())[:8]
    asked = list(samples("test", 0, 0, 12))
    clips = [next(s for s in asked if s.kind == kind) for kind in ("direction", "recolour")]
    fig, axes = plt.subplots(4, 4, figsize=(10, 11.5))
    for ax, sample in zip(axes[:2].flat, stills, strict=True):
        ax.imshow(sample.pictures()[0])
        ax.set_title("\n".join([*textwrap.wrap(sample.question, 30), f"→ {sample.answer}"]), fontsize=9)
    for row, sample in zip(axes[2:], clips, strict=True):
        for ax, frame in zip(row, (0, 3, 5, 7), strict=True):
            ax.imshow(sample.pictures()[frame])
            ax.set_title(f"frame {frame + 1} of 8", fontsize=9)
        row[0].set_title(f"{sample.question} → {sample.answer}\nframe 1 of 8", fontsize=9, loc="left")
        row[0].set_title("")
    for ax in axes.flat:
        ax.axis("off")
    fig.tight_layout(h_pad=1.5)
    fig.savefig(path, dpi=72)  # no palette: it would merge orange and yellow


def curves(histories: list[Path], path: Path) -> None:
    """Loss and held-out accuracy (teacher-forced, all tokens seen) over the steps of consecutive runs."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    offset = 0
    for i, history in enumerate(json.loads(file.read_text())["history"] for file in histories):
        for key, colour in (("patch loss", "0.6"), ("image loss", "C0"), ("clip loss", "C1")):
            points = [(offset + line["step"], line[key]) for line in history if key in line]
            if points:
                left.plot(*zip(*points, strict=True), color=colour, label=key if not i else None)
        for key, colour in (
            ("image", "C0"),
            ("clip", "C1"),
            ("place", "C2"),
            ("compare", "C3"),
            ("happens", "C4"),
        ):
            points = [(offset + line["step"], 100 * line["val"][key]) for line in history if "val" in line]
            main = key in ("image", "clip")
            right.plot(
                *zip(*points, strict=True),
                color=colour,
                lw=2 if main else 1,
                ls="-" if main else "--",
                label=(f"all {key} questions" if main else key) if not i else None,
            )
        offset += history[-1]["step"]
    left.set(yscale="log", xlabel="step", title="training loss")
    right.set(xlabel="step", ylim=(0, 100), title="held-out accuracy, %, unpruned")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=90)


def accuracy(table: Path, path: Path) -> None:
    """Accuracy against the keep ratio, each rule a line (or a point where one ratio was run)."""
    rows = json.loads(table.read_text())
    fig, axes = plt.subplots(1, len(rows), figsize=(3.4 * len(rows), 3.6), sharey=True)
    for ax, (name, scores) in zip(axes, rows.items(), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for key, value in scores.items():
            if "@" in key:
                rule, keep = key.split("@")
                lines.setdefault(rule, []).append((float(keep), 100 * value["all"]))
        for rule, points in lines.items():
            full = [(1.0, 100 * scores["unpruned"]["all"])] if rule == "rediprune" else []
            ax.plot(*zip(*sorted(points + full), strict=True), marker="o", ms=4, label=rule)
        ax.axhline(100 * scores["majority answer"]["all"], color="0.6", lw=1, ls=":", label="majority answer")
        ax.set(xscale="log", xlabel="kept tokens", title=name)
        ax.set_xticks([0.1, 0.15, 0.25, 0.5, 1], ["10 %", "15", "25", "50", "100"])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set(ylabel="accuracy, %", ylim=(0, 100))
    axes[0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="holds curves*.json, eager.json")
    folder = parser.parse_args().docs
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet(folder / "samples.png")
    histories = sorted(folder.glob("curves*.json"))
    if histories:
        curves(histories, folder / "curves.png")
    if (folder / "eager.json").exists():
        accuracy(folder / "eager.json", folder / "accuracy.png")


if __name__ == "__main__":
    main()
