"""Tables on terminals of any width: every name and every figure is complete."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_deploy.terminal.console import Console
from qil_deploy.terminal.table import CELL_LENGTH, Column, Table

FIGURES = ("bits", "input codes", "weights", "MACs", "bytes", "zero weights", "dead channels", "multiplier")


def shown(table: Table, width: int = 80) -> list[str]:
    """Return the lines of a table, without trailing spaces."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines), default=0) <= width
    return [line.rstrip() for line in lines]


def layers(name: str, rows: int = 3) -> Table:
    table = Table("Layers", ("layer", Column(heading="operator", text=True), *FIGURES))
    for row in range(rows):
        figures = ("4", "0..15", "64x64x3x3", "1,806,336", "18,433", "14.4 %", f"{row}", "0.000689..0.00148")
        table.row(f"{name}{row}", "QLinearConv", *figures)
    return table


def test_a_table_that_fits_is_one_block_with_headings_on_one_line() -> None:
    lines = shown(layers("layer3.0.downsample."), width=140)
    assert lines[:2] == ["", "Layers"]
    assert lines[2].split("  ")[0] == "layer"
    for heading in ("operator", *FIGURES):
        assert f" {heading}" in lines[2]
    assert [line.split()[0] for line in lines[4:]] == [f"layer3.0.downsample.{row}" for row in range(3)]


def test_headings_are_folded_before_anything_else() -> None:
    table = Table("", ("backend", "differing logits", "changed classes"))
    table.row("ONNX Runtime", "0", "12")
    assert shown(table, width=47)[0] == "backend       differing logits  changed classes"
    assert [line.split() for line in shown(table, width=46)[:2]] == [
        ["differing", "changed"],
        ["backend", "logits", "classes"],
    ]


def test_what_does_not_fit_follows_in_a_block_of_its_own_with_the_names_again() -> None:
    lines = shown(layers("layer3.0.downsample."))
    text = "\n".join(lines)
    assert "…" not in text
    assert "..." not in text
    for row in range(3):
        name = f"layer3.0.downsample.{row}"
        first, second = (line.split() for line in lines if line.startswith(name))
        assert first == [name, "QLinearConv", "4", "0..15", "64x64x3x3", "1,806,336", "18,433"]
        assert second == [name, "14.4", "%", str(row), "0.000689..0.00148"]


def test_columns_of_a_group_are_not_torn_apart() -> None:
    columns = [Column(heading=f"{name} {width}", group=name) for name in ("bytes", "KL", "loss") for width in (4, 3, 2)]
    table = Table("", ("layer", *columns))
    table.row("layer3.0.downsample.0", *["0.00000"] * 9)
    for width, grouped in ((90, [["bytes", "KL"], ["loss"]]), (70, [["bytes"], ["KL"], ["loss"]])):
        heads = [line.split() for line in shown(table, width) if line.startswith("layer ")]
        assert [list(dict.fromkeys(head[1::2])) for head in heads] == grouped
    assert len([line for line in shown(table, width=40) if line.startswith("layer ")]) == 6


def test_words_are_folded_figures_never() -> None:
    table = Table("", ("target", Column(heading="state", text=True), "ms"))
    table.row("arm64", "it is not set up; run: python -m qil_deploy target setup arm64", "1234567.890")
    lines = shown(table, width=50)
    assert "1234567.890" in lines[2]
    words = " ".join(line.removeprefix("arm64").replace("1234567.890", "") for line in lines[2:]).split()
    assert " ".join(words) == "it is not set up; run: python -m qil_deploy target setup arm64"


def test_a_name_longer_than_the_terminal_is_folded_and_stays_whole() -> None:
    name = "backbone." * 12
    lines = shown(layers(name, rows=1), width=60)
    pieces = [line.split(" ")[0] for line in lines if line and not line.startswith(("Layers", "layer", "─", " "))]
    assert "".join(pieces).count(f"{name}0") >= 2


def test_only_what_no_file_system_allows_is_cut() -> None:
    table = Table("", ("name", "bytes"))
    table.row("a" * CELL_LENGTH, "1")
    table.row("b" * 300_000, "2")
    names = "".join(line.split(" ")[0] for line in shown(table)[2:])
    assert names.startswith("a" * CELL_LENGTH + "b")
    assert "bbb ... (300,000 characters) ... bbb" in " ".join(shown(table)).replace("b 2", "b")
    assert len(names) < 2 * CELL_LENGTH


def test_cells_titles_headings_and_notes_are_text() -> None:
    hostile = "[red]:bug:\x1b[2J\nExact\u202e"
    table = Table(hostile, (hostile, Column(heading=hostile, text=True)), [hostile])
    table.row(hostile, hostile)
    lines = shown(table, width=200)
    escaped = r"[red]:bug:\x1b[2J\nExact\u202e"
    assert [line.count(escaped) for line in lines] == [0, 1, 2, 0, 2, 1]


def test_rows_have_as_many_cells_as_there_are_columns() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells, and the table 2 columns"):
        Table("", ("a", "b")).row("1")


FIGURE = st.text(st.sampled_from("0123456789.,-%"), min_size=1, max_size=12)
NAME = st.text(st.sampled_from("abcxyz._"), min_size=1, max_size=40)


@given(
    st.lists(st.tuples(NAME, st.lists(FIGURE, min_size=7, max_size=7)), min_size=1, max_size=4), st.integers(40, 130)
)
def test_every_name_and_figure_is_shown_at_any_width(rows: list[tuple[str, list[str]]], width: int) -> None:
    table = Table("title", ("name", *(f"column {index}" for index in range(7))))
    for name, figures in rows:
        table.row(name, *figures)
    lines = shown(table, width)
    words = [word for line in lines for word in line.split()]
    for _, figures in rows:
        for figure in figures:
            assert figure in words
