"""The outcome on the terminal."""

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

SHOWN = ("vision", "select", "prefill")


def print_table(console: Console, document: dict[str, Any]) -> None:
    rows = document["rows"]
    for says in document["verdicts"]:
        console.print(says, highlight=False, soft_wrap=True)
    base = next((row["time_to_first_token"] for row in rows if not row["ours"]), None)
    table = Table("", "first token", *SHOWN, "token/s", "GB", "×", title="seconds to the first token", box=SIMPLE)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.no_wrap = True
    for row in rows:
        table.add_row(
            f"{row['contender']}, keep {row['keep']:g}",
            f"{row['time_to_first_token']:.3f}",
            *(f"{row['stages'][key]:.3f}" if row["stages"].get(key) else "" for key in SHOWN),
            f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else "",
            f"{row['peak_memory_bytes'] / 1e9:.1f}",
            f"{base / row['time_to_first_token']:.2f}" if base else "",
        )
    console.print(table)
    if document["decoders"]:
        table = Table("", "prefill", "token/s", "GB", title="seconds of the decoder alone", box=SIMPLE)
        for row in [*rows, *document["decoders"]]:
            if "prefill" in row["stages"]:
                table.add_row(
                    f"{row['contender']}, keep {row['keep']:g}",
                    f"{row['stages']['prefill']:.3f}",
                    f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else "",
                    f"{row['peak_memory_bytes'] / 1e9:.1f}",
                )
        console.print(table)
    top = document["ceilings"]
    console.print(
        f"medians of {document['runs']} answers in {document['turns']} turns, {document['machine']['threads']} threads; "
        f"this machine: fp32 {top['fp32_gflops']:.0f} GFLOP/s, int8 {top['int8_gops']:.0f} GOP/s, "
        f"reads {top['read_gb_per_second']:.1f} GB/s",
        highlight=False,
    )
    for name, reason in document["absent"].items():
        console.print(f"left out: {name}: {reason}", highlight=False)
