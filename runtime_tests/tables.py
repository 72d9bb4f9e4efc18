"""Reports as tables that fit a terminal of 80 columns."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from .differences import describe_difference
from .tally import BackendResult
from .verify import VerifyReport


def verify_table(report: VerifyReport) -> Table:
    """Return one row per backend: accuracy and what differs from the reference."""
    table = new_table(
        title=f"{escape(report.model.path)} ({report.format}, {report.input} input), {report.images} images",
        caption="\n".join(
            (
                _verdict(report),
                *(escape(describe_difference(comparison)) for comparison in report.comparisons),
                *(f"Note: {warning}" for warning in report.warnings),
            )
        ),
    )
    table.add_column("backend", no_wrap=True)
    for column in ("top-1 %", "differing\nlogits", "changed\nclasses", "largest\ndifference"):
        table.add_column(column, justify="right")
    table.add_column("result")
    table.add_row(escape(report.reference), _percent(report.reference_accuracy))
    for backend in report.backends:
        table.add_row(
            escape(backend.name),
            _percent(backend.accuracy),
            str(backend.differing_logits),
            str(backend.changed_predictions),
            f"{backend.largest_difference:.4g}",
            _result(backend),
            style="red" if _fails(backend) else None,
        )
    return table


def new_table(title: str, caption: str) -> Table:
    """Return an empty table in the manner of all of them."""
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def short_names(paths: set[str]) -> dict[str, str]:
    """Name files without their folders where that leaves them apart."""
    unique = len({Path(path).name for path in paths}) == len(paths)
    return {path: Path(path).name if unique else path for path in paths}


def _fails(backend: BackendResult) -> bool:
    return backend.must_equal and backend.differing_logits > 0


def _result(backend: BackendResult) -> str:
    """Say in a word or two how a backend did."""
    broken = f", {backend.not_finite} not finite" if backend.not_finite else ""
    if backend.differing_logits == 0:
        return f"equal{broken}"
    return f"{'DIFFERS' if backend.must_equal else 'may differ'}{broken}"


def _verdict(report: VerifyReport) -> str:
    if report.exact is None:
        return "Nothing had to be equal: the file has float parts."
    if report.exact:
        return "Exact: every backend that must equal the integer reference does, in every logit."
    wrong = [backend.name for backend in report.backends if _fails(backend)]
    return f"Not exact: {escape(', '.join(wrong))} must equal the integer reference and does not."
