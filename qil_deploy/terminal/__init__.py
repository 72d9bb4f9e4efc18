"""Terminal output: text from files escaped and cut, tables as wide as the terminal, progress.

Commands import rich only through here (a contract in pyproject.toml), so that none can print text from a file
unescaped.
"""

from __future__ import annotations

from .console import Console, line, print_error
from .progress import Progress, TaskID
from .table import Column, Table

__all__ = ["Column", "Console", "Progress", "Table", "TaskID", "line", "print_error"]
