"""Tables in Markdown read back as what was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.calibration.evaluation.markdown import markdown_table

cells = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\\"), max_size=8)


def read(table: str) -> list[list[str]]:
    """The cells of a table, by GitHub's rules: a bar that is not escaped ends one."""
    rows = []
    for line in table.split("\n"):
        assert line.startswith("| ") and line.endswith(" |")
        rows.append([cell.replace("\0", "|") for cell in line[2:-2].replace("\\|", "\0").split(" | ")])
    return rows


def test_a_table_is_what_pages_have_always_had() -> None:
    assert markdown_table(["", "keep"], [["ort", "1"], ["eager", "0.15"]]) == (
        "|  | keep |\n| --- | --- |\n| ort | 1 |\n| eager | 0.15 |"
    )
    assert markdown_table(["a"], []) == "| a |\n| --- |"


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1)))
def test_cells_are_read_back_whatever_they_hold(rows: list[list[str]]) -> None:
    head, *rest = rows
    assert read(markdown_table(head, rest)) == [head, ["---"] * len(head), *rest]


def test_a_line_break_does_not_end_the_row() -> None:
    assert markdown_table(["a", "b"], [["one\ntwo", "x|y"]]).split("\n")[-1] == "| one two | x\\|y |"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="another number of cells than the 2 columns"):
        markdown_table(["a", "b"], [["1"]])
