"""The outcome as a page of the documentation: Markdown with its pictures beside it."""

import os
from pathlib import Path
from typing import Any

from ...runtime.timing import TIMED_STAGES


def write_page(document: dict[str, Any], path: Path, command: str) -> list[Path]:
    """Write the page, its pictures and the document as JSON, each named after the page.

    Returns:
        The files written.
    """
    from .bench_plots import plot_growth, plot_keep, plot_stages

    pictures = {"keep": plot_keep, "stages": plot_stages} | ({"growth": plot_growth} if "growth" in document else {})
    files = []
    for name, plot in pictures.items():
        picture = path.with_name(f"{path.stem}-{name}.png")
        temporary = picture.with_name(f".{picture.name}")  # the ending tells matplotlib the format
        plot(document, temporary)
        os.replace(temporary, picture)
        files.append(picture)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(_page(document, command, files), encoding="utf-8")
    os.replace(temporary, path)
    return [*files, path]


def _page(document: dict[str, Any], command: str, pictures: list[Path]) -> str:
    model, machine, top = document["model"], document["machine"], document["ceilings"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    frames = f"a video of {model['frames']} frames" if model["kind"] == "video" else "one image"
    parts = [
        "# Time to first token beside peers",
        *(["\n".join(f"- {says}" for says in document["verdicts"])] if document.get("verdicts") else []),
        f"Written on {document['date']} by\n\n    {command}",
        f"{machine['processor']}, {machine['threads']} threads; {versions}. {model['parameters'] / 1e6:.0f} M parameters, "
        f"{frames} of {model['visual_tokens']} visual tokens, {model['prompt_tokens']} text tokens. Contenders take turns, "
        f"each turn in a process of its own; medians of {document['runs']} answers in {document['turns']} turns. "
        f"Load of the machine before (processes wanting a core): {machine['load_before']:.1f}.",
        "## Time to first token, seconds\n\n" + _first_token(document),
        "\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures),
        "## Speed-ups\n\n" + _speed_ups(document),
        "## Decoding, start, memory\n\n" + _rest(document),
        *(["## The decoder alone\n\n" + _decoders(document)] if document["decoders"] else []),
        "## Against what the machine can do\n\n"
        f"Measured in the same run: float32 product {top['fp32_gflops']:.0f} GFLOP/s in ONNX Runtime and "
        f"{top['torch_fp32_gflops']:.0f} in torch, int8 product {top['int8_gops']:.0f} GOP/s (unsigned by signed; "
        f"{top['uint8_gops']:.0f} unsigned by unsigned, which quantised stages run on CPUs without VNNI), reading memory "
        f"{top['read_gb_per_second']:.1f} GB/s. A multiply-add is two operations.\n\n" + _achieved(document),
    ]
    if "growth" in document:
        parts.append("## How cost grows\n\n" + _growth(document))
    if document["absent"]:
        lines = [f"- {name}: {reason}" for name, reason in document["absent"].items()]
        parts.append("## Left out\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _first_token(document: dict[str, Any]) -> str:
    header = ["", "keep", "first token (fastest – slowest)", *TIMED_STAGES, "selector"]
    rows = []
    for row in document["rows"]:
        first = f"{row['time_to_first_token']:.3f} ({row['fastest']:.3f} – {row['slowest']:.3f})"
        stages = [f"{row['stages'][key]:.4f}" if row["stages"].get(key) else "–" for key in TIMED_STAGES]
        share = f"{row['selector_share']:.2%}" if row["stages"].get("select") else "–"
        rows.append([row["contender"], f"{row['keep']:g}", first, *stages, share])
    return _markdown(header, rows)


def _speed_ups(document: dict[str, Any]) -> str:
    """To the first token and, in brackets, per decoded token."""
    ours = document["speed_up"]
    peers = list(dict.fromkeys(name for ratios in ours.values() for name in ratios))
    if not peers:
        return "No peer was asked for."
    rows = [
        [name, *(f"{ratios[peer]['first_token']:.2f} × ({ratios[peer]['decode']:.2f} ×)" for peer in peers)]
        for name, ratios in ours.items()
    ]
    note = "Times sooner to the first token and, in brackets, times faster per decoded token.\n\n"
    return note + _markdown(["", *(f"against {peer}" for peer in peers)], rows)


def _rest(document: dict[str, Any]) -> str:
    header = ["", "keep", "tokens/s", "whole answer, s", "process start to first token, s", "peak memory", "on disk"]
    rows = [
        [
            row["contender"],
            f"{row['keep']:g}",
            f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else "–",
            f"{row['end_to_end']:.3f}",
            f"{row['start_up']:.2f}",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
            f"{row['disk_bytes'] / 1e9:.2f} GB",
        ]
        for row in document["rows"]
    ]
    return _markdown(header, rows)


def _decoders(document: dict[str, Any]) -> str:
    """Peers that are the decoder alone beside the prefill and the decoding of everyone else."""
    rows = [
        [
            row["contender"],
            f"{row['keep']:g}",
            f"{row['stages']['prefill']:.3f}",
            f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else "–",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
            f"{row['disk_bytes'] / 1e9:.2f} GB",
        ]
        for row in [*document["rows"], *document["decoders"]]
        if "prefill" in row["stages"]
    ]
    note = "Peers that have no vision are given a text of as many tokens as the prompt then has positions.\n\n"
    return note + _markdown(["", "keep", "prefill, s", "tokens/s", "peak memory", "on disk"], rows)


def _achieved(document: dict[str, Any]) -> str:
    top = document["ceilings"]
    header = ["", "keep", "multiply-adds vision", "prefill", "vision GFLOP/s", "prefill GFLOP/s", "decode reads GB/s"]
    rows = []
    for row in document["rows"]:
        work = document["multiply_adds"][f"{row['keep']:g}"]
        cells = [row["contender"], f"{row['keep']:g}"]
        cells += [f"{work[name] / 1e9:.1f} G" for name in ("vision", "prefill")]
        for share, stage in (("vision", "vision"), ("prefill", "language")):
            rate = row["gflops"].get(share)
            cells.append(_rate(rate, top, row["precision"].get(stage, "")) if rate else "–")
        read = row.get("decode_gb_per_second")
        cells.append(f"{read:.1f} ({read / top['read_gb_per_second']:.0%})" if read else "–")
        rows.append(cells)
    return _markdown(header, rows)


def _rate(rate: float, top: dict[str, float], precision: str) -> str:
    shares = [f"{rate / top['fp32_gflops']:.0%} of fp32"]
    if "int8" in precision:
        shares += [f"{rate / top[f'{kind}_gops']:.0%} of {kind}" for kind in ("int8", "uint8")]
    return f"{rate:.0f} ({', '.join(shares)})"


def _growth(document: dict[str, Any]) -> str:
    parts = [f"{document['rows'][0]['contender']}; each measured once, in seconds."]
    for name, curve in document["growth"].items():
        if name == "left_out":
            continue
        rows = [
            [size, *(f"{curve[size].get(key, 0.0):.4f}" for key in ("time_to_first_token", *TIMED_STAGES))]
            for size in sorted(curve, key=float)
        ]
        parts.append(_markdown([name, "first token", *TIMED_STAGES], rows))
    if document["growth"]["left_out"]:
        parts.append(f"The model has no positions for: {', '.join(document['growth']['left_out'])}.")
    return "\n\n".join(parts)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
