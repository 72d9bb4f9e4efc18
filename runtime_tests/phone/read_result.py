"""Convert a page's posted result to a report, or refuse it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qil_deploy.errors import DataError
from qil_deploy.reports import Report, read_report

PostedReport = TypeVar("PostedReport", bound=Report)
_SENT = "what the browser sent"


def read_result(
    content: bytes, report_class: type[PostedReport], check: Callable[[PostedReport], None], expected: str
) -> PostedReport:
    """Read a posted report.

    Args:
        content: as it was posted.
        report_class: what it has to be.
        check: raises DataError if it cannot be true.
        expected: what it then is not, in words.

    Raises:
        DataError: it is no report of this class, or `check` says so.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        path.write_bytes(content)
        try:
            report = read_report(path, report_class)
        except DataError as error:
            raise DataError(str(error).replace(str(path), _SENT)) from error
    try:
        check(report)
    except DataError as error:
        raise DataError(f"{_SENT} is {expected}: {error}.") from error
    return report
