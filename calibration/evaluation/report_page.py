"""A report for people: a table on the terminal or in Markdown, and a picture."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.timing import TIMED_STAGES
from .markdown import markdown_table

Document = dict[str, Any]


def figures(document: Document) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the one table: a column for every bundle, a row for every figure."""
    bundles = document["bundles"]
    source = bundles[0]
    rows = [["recipe", *(_recipe(row) for row in bundles)]]

    def add(label: str, cells: Sequence[str]) -> None:
        if any(cell != "–" for cell in cells):
            rows.append([label, *cells])

    sizes = [row["disk_bytes"] for row in bundles]
    add("on disk, MB (of the source's)", [_beside(size, sizes[0], 1e-6, 1) for size in sizes])
    sizes = [row["weight_bytes"]["language"] for row in bundles]
    add("weights of language, MB (of the source's)", [_beside(size, sizes[0], 1e-6, 1) for size in sizes])
    if source["times"]:
        peaks = [row["peak_memory_bytes"] for row in bundles]
        add("peak memory, MB (of the source's)", [_beside(peak, peaks[0], 1e-6, 0) for peak in peaks])
        for keep in source["times"]:
            for key, label in (
                ("time_to_first_token", "first token"),
                ("vision", "vision"),
                ("prefill", "prefill"),
                ("decode_token", "a decoded token"),
            ):
                values = [_seconds(row["times"][keep], key) for row in bundles]
                cells = [_beside(value, values[0], 1e3, 2, faster=True) for value in values]
                add(f"{label}, ms, keep {keep} (as fast)", cells)
    for stage in dict.fromkeys(stage for row in bundles for stage in row["stages"]):
        found = [row["stages"].get(stage) for row in bundles]
        add(f"{stage}: cosine (least)", [f"{s['cosine']:.5f} ({s['least_cosine']:.5f})" if s else "–" for s in found])
        add(
            f"{stage}: relative error (greatest)",
            [f"{s['relative_error']:.2%} ({s['greatest_relative_error']:.2%})" if s else "–" for s in found],
        )
    for keep in next((row["jaccard"] for row in bundles if row["jaccard"]), {}):
        floor = f"fp16: {document['noise']['jaccard'][keep]:.4f}" if document["noise"] else "–"
        rows.append(
            [f"kept sets alike (Jaccard), keep {keep}", floor, *(f"{row['jaccard'][keep]:.4f}" for row in bundles[1:])]
        )
    for keep in source["answers"]:
        found = [row["answers"][keep] for row in bundles]
        rows.append([f"same answers, keep {keep}", "–", *(f"{a['same_answers']:.1%}" for a in found[1:])])
        rows.append([f"token ids before they differ, keep {keep}", "–", *(f"{a['same_ids']:.1%}" for a in found[1:])])
        cells = [f"{100 * found[0]['accuracy']:.1f}"]
        for a in found[1:]:
            low, high = (100 * end for end in a["change_interval"])
            cells.append(
                f"{100 * a['accuracy']:.1f} ({100 * a['change']:+.1f}, 95 %: {low:+.1f} … {high:+.1f}; "
                f"lost {a['lost']}, gained {a['gained']})"
            )
        rows.append([f"right answers, %, keep {keep}", *cells])
    return ["", *(row["name"] for row in bundles)], rows


def _recipe(row: Document) -> str:
    forms = row["recipe"]
    if not forms:
        return row["precision"]
    return (
        ", ".join(f"{stage} {form}" for stage, form in forms.items())
        if len({*forms.values()}) > 1
        else next(iter(forms.values()))
    )


def _seconds(times: Document, key: str) -> float:
    return times[key] if key in times else times["stages"].get(key, 0.0)


def _beside(value: float, reference: float, unit: float, digits: int, faster: bool = False) -> str:
    """A figure with how many times the source's it is, or how many times as fast; a dash where it was not measured."""
    if not value or not reference:
        return "–"
    ratio = "" if value == reference else f" ({reference / value if faster else value / reference:.2f} ×)"
    return f"{unit * value:.{digits}f}{ratio}"


def write_page(document: Document, path: Path, command: str) -> None:
    """Write the page and, under the same name, the picture (PNG)."""
    picture = path.with_suffix(".png")
    plot(document, picture)
    machine, bundles = document["machine"], document["bundles"]
    questions = " and ".join(
        f"{number} questions about {name or 'them'}" for name, number in document["questions"].items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    parts = [
        "# What calibration costs and brings",
        f"Written on {document['date']} by\n\n```\n{command}\n```",
        f"**{document['recommendation']}**",
        f"{questions}, greedy, word for word; stages and kept sets on {document['samples']} of them. Backend "
        f"`{document['backend']}`, {machine['threads']} threads"
        + (f", load of the machine before {machine['load_before']:.1f}" if "load_before" in machine else "")
        + f"; {versions}.",
        markdown_table(*figures(document)),
        f"![accuracy, kept sets and time]({picture.name})",
        "Intervals of changes are of paired proportions, 95 %. The overlap of kept sets has a floor: what fp16 alone does "
        "to the features (in the source's column). The greatest relative errors, times 1.5 and capped, are noted in the bundles for this backend; "
        "`rediprune validate` holds them to these.",
        *(_by_kind(bundles, data) for data in bundles[0]["answers"][next(iter(bundles[0]["answers"]))]["sets"]),
    ]
    parts += [f"Left out: {name}: {why}." for name, why in document["absent"].items()]
    temporary = path.with_name(path.name + ".new")
    temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _by_kind(bundles: Sequence[Document], data: str) -> str:
    first = next(iter(bundles[0]["answers"].values()))["sets"][data]
    rows = []
    for row in bundles:
        for keep, answers in row["answers"].items():
            mine = answers["sets"][data]
            low, high = (100 * end for end in mine["interval"])
            share = f"{100 * mine['right'] / mine['asked']:.1f} ({low:.1f} – {high:.1f})"
            kinds = [f"{100 * right / asked:.0f}" for right, asked in mine["kinds"].values()]
            rows.append([row["name"], keep, share, *kinds])
    head = ["", "keep", "right, %", *(f"{kind} ({asked})" for kind, (_, asked) in first["kinds"].items())]
    return f"## Right answers by kind: {data or 'all'}\n\n{markdown_table(head, rows)}"


def plot(document: Document, path: Path) -> None:
    """Write a PNG: accuracy with intervals, overlap of kept sets above its floor, time to the first token by stage."""
    from matplotlib.figure import Figure

    bundles = document["bundles"]
    timed = bool(bundles[0]["times"])
    figure = Figure(figsize=(5 * (2 + timed), 4), layout="constrained")
    panels = figure.subplots(1, 2 + timed)
    keeps = list(bundles[0]["answers"])
    width = 0.8 / len(bundles)
    for at, row in enumerate(bundles):
        shares = [100 * row["answers"][keep]["accuracy"] for keep in keeps]
        places = [number + (at - (len(bundles) - 1) / 2) * width for number in range(len(keeps))]
        panels[0].bar(places, shares, width, label=row["name"])
        for place, keep in zip(places, keeps, strict=True) if at else ():
            change, interval = row["answers"][keep]["change"], row["answers"][keep]["change_interval"]
            spread = 100 * (interval[1] - change)
            panels[0].errorbar([place], [100 * row["answers"][keep]["accuracy"]], [spread], color="black", capsize=2)
    panels[0].set_xticks(range(len(keeps)), [f"keep {keep}" for keep in keeps])
    lowest = min(100 * row["answers"][keep]["accuracy"] for row in bundles for keep in keeps)
    panels[0].set(ylabel="right answers, %", ylim=(max(0, lowest - 12), 100))
    panels[0].legend(fontsize=8, loc="lower right")
    lines = [(row["name"], row["jaccard"], "-") for row in bundles[1:]]
    lines += [("fp16 (floor)", document["noise"]["jaccard"], "--")] if document["noise"] else []
    for number, (name, overlaps, style) in enumerate(lines):
        ratios = sorted(overlaps, key=float)
        colour = f"C{number + 1}" if style == "-" else "black"
        panels[1].plot(
            [float(k) for k in ratios], [overlaps[k] for k in ratios], style, marker="o", label=name, color=colour
        )
    panels[1].set(xlabel="keep", ylabel="kept sets alike (Jaccard)", ylim=(None, 1.02))
    panels[1].legend(fontsize=8)
    panels[1].grid(alpha=0.3)
    if timed:
        labels = [f"{row['name']}, {keep}" for row in bundles for keep in row["times"]]
        left = [0.0] * len(labels)
        for stage in TIMED_STAGES:
            spent = [1e3 * times["stages"].get(stage, 0.0) for row in bundles for times in row["times"].values()]
            panels[2].barh(labels, spent, left=left, label=stage)
            left = [a + b for a, b in zip(left, spent, strict=True)]
        panels[2].invert_yaxis()
        panels[2].set(xlabel="ms to the first token")
        panels[2].legend(fontsize=8)
    figure.savefig(path, dpi=100)
