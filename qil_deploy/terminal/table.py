"""Tables that are readable on a terminal of any width: no figure is ever broken or cut, no name is shortened.

Where a table is wider than the terminal, its headings are folded; then its columns of text; and what still does not fit
follows below in further blocks, each with the names of the rows in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from qil_deploy.untrusted_text import one_line

from .console import line

CELL_LENGTH: Final = 255
"""Of a cell, in characters; a file's name has no more, so that only what no file system allows is cut."""

_GAP: Final = 2
_FOLDED: Final = 20  # characters; longer words are broken where there is little room


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        heading: of one line; it is folded between words where there is little room.
        text: whether it is words, aligned to the left and folded where there is little room; else figures, aligned to
            the right and never broken.
        group: neighbours of the same group are not torn apart, unless they are too wide together.
        style: of its cells.
    """

    heading: str
    text: bool = False
    group: str = ""
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class _Row:
    cells: tuple[str, ...]
    style: str
    apart: bool


class Table:
    """A table for `Console.print`."""

    def __init__(self, title: str, columns: Sequence[Column | str], notes: Sequence[str] = ()) -> None:
        """Make a table without rows.

        Args:
            title: above it; "" for none.
            columns: the first names the rows and is text; a string is the heading of a column of figures.
            notes: sentences below it.
        """
        first, *others = (Column(heading=each) if isinstance(each, str) else each for each in columns)
        self.title = title
        self.columns = (replace(first, text=True), *others)
        self.notes = tuple(notes)
        self._rows: list[_Row] = []

    def row(self, *cells: str, style: str = "", apart: bool = False) -> None:
        """Add a row; `apart` leaves a gap before it."""
        if len(cells) != len(self.columns):
            raise ValueError(f"a row has {len(cells)} cells, and the table {len(self.columns)} columns")
        shown = tuple(one_line(cell, CELL_LENGTH) for cell in cells)
        self._rows.append(_Row(cells=shown, style=style, apart=apart))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Render to the width of the terminal."""
        yield from self._lines(options.max_width)

    def _lines(self, width: int) -> Iterator[RenderableType]:
        if self.title:
            yield Text()
            yield line((self.title, "table.title"))
        measured = [self._measure(index, width) for index in range(len(self.columns))]
        for number, chosen in enumerate(_blocks(measured, [column.group for column in self.columns], width)):
            if number:
                yield Text()
            yield self._block(chosen, _fit([measured[index] for index in chosen], width))
        for note in self.notes:
            yield line(note)

    def _measure(self, index: int, width: int) -> _Widths:
        """Return the maximum width of a column; names of rows may take half of the terminal."""
        column = self.columns[index]
        heading = one_line(column.heading, CELL_LENGTH)
        cells = [row.cells[index] for row in self._rows]
        widest = max(map(cell_len, cells), default=0)
        folded = max(widest, _longest_word([heading]))
        least = folded
        if index == 0:
            least = min(folded, max(_FOLDED, width // 2))
        elif column.text:
            least = max(_longest_word([heading]), min(_longest_word(cells), _FOLDED))
        wide = max(widest, cell_len(heading))
        return _Widths(wide=wide, folded=folded, least=least)

    def _block(self, chosen: Sequence[int], widths: Sequence[int]) -> RichTable:
        """Return some of the columns as a rich table."""
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), show_edge=False, pad_edge=False)
        for index, width in zip(chosen, widths, strict=True):
            column = self.columns[index]
            table.add_column(
                line(column.heading),
                justify="left" if column.text else "right",
                overflow="fold",
                width=width,
                style=column.style,
            )
        for row in self._rows:
            if row.apart:
                table.add_section()
            table.add_row(*(Text(row.cells[index]) for index in chosen), style=row.style)
        return table


@dataclass(frozen=True, kw_only=True)
class _Widths:
    """Widths of a column: with its heading on one line, with its heading folded, and the minimum."""

    wide: int
    folded: int
    least: int


def _longest_word(texts: Sequence[str]) -> int:
    return max((cell_len(word) for text in texts for word in text.split()), default=0)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * max(0, len(widths) - 1)


def _blocks(columns: Sequence[_Widths], groups: Sequence[str], width: int) -> list[list[int]]:
    """Distribute columns over blocks, by their indices; each block begins with the first column."""
    blocks: list[list[int]] = [[0]]
    for unit in _units(columns, groups, width):
        if len(blocks[-1]) > 1 and _total([columns[index].least for index in (*blocks[-1], *unit)]) > width:
            blocks.append([0])
        blocks[-1] += unit
    return blocks


def _units(columns: Sequence[_Widths], groups: Sequence[str], width: int) -> list[list[int]]:
    """Return the indices of all columns but the first, in groups that must stay together."""
    units: list[list[int]] = []
    for index in range(1, len(columns)):
        together = units[-1] if units else []
        same = bool(together) and groups[index] != "" and groups[together[-1]] == groups[index]
        if same and _total([columns[each].least for each in (0, *together, index)]) <= width:
            together.append(index)
        else:
            units.append([index])
    return units


def _fit(columns: Sequence[_Widths], width: int) -> list[int]:
    """Return the width of each column of a block: the widest are folded first, and none below its minimum."""
    widths = [column.wide for column in columns]
    if _total(widths) <= width:
        return widths
    widths = [column.folded for column in columns]
    while _total(widths) > width:
        foldable = [index for index, column in enumerate(columns) if widths[index] > column.least]
        if not foldable:  # the terminal is narrower than a name and one figure
            foldable = [index for index, each in enumerate(widths) if each > 1]
            if not foldable:
                break
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return widths
