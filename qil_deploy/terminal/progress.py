"""Progress bars whose descriptions are text, never markup."""

from __future__ import annotations

from typing import Any

import rich.progress
from rich.progress import ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from .console import Console, line

__all__ = ["Progress", "TaskID"]


class Progress(rich.progress.Progress):
    """Rich's progress on our console."""

    def __init__(
        self,
        *columns: str | ProgressColumn,
        console: Console | None = None,
        **options: Any,  # noqa: ANN401 - those of the base class
    ) -> None:
        super().__init__(*columns, console=console or Console(), **options)

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        """Return rich's columns, with descriptions on one line."""
        _, *others = super().get_default_columns()
        return _Description(table_column=Column(no_wrap=True)), *others


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return line((task.description, "progress.description"))
