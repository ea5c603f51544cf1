"""Tables in Markdown, as every page that this project writes has them."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in GitHub's Markdown, without a newline at its end.

    Args:
        head: the columns' names; "" for one without.
        rows: cells as texts, as many in each row as there are columns. A line break in a cell becomes a space, and a bar
            is escaped: both would end the cell.

    Raises:
        ValueError: a row of another length.
    """
    lines = [head, ["---"] * len(head), *rows]
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"a row has another number of cells than the {len(head)} columns: {head}")
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")
