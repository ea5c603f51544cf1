"""What each unit of layers costs where it alone is quantised, as a table."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..bundle import CalibrationSpec, Sensitivity, sensitivity_rows


def sensitivity_table(found: Sequence[Sensitivity], made: CalibrationSpec | None = None) -> Table:
    """`sensitivity_rows` for a terminal: figures stay whole, a unit's long name goes on in the next line."""
    head, rows = sensitivity_rows(found, made)
    table = Table(title="each unit quantised alone, beside the source, held out", box=SIMPLE, padding=0)
    for name in head:
        if name == "unit":
            table.add_column(name, overflow="fold")
        else:
            words = [*name.split(), *(row[head.index(name)] for row in rows)]
            table.add_column(name, width=max(map(len, words)))
    for one, row in zip(found, rows, strict=True):
        table.add_row(*map(escape, row), style=None if one.quantised else "bold")
    return table
