"""Tables of the reports of `verify`."""

from __future__ import annotations

from pathlib import Path

from qil_deploy.terminal import Column, Table

from .differences import describe_difference
from .exported_model import FLOAT
from .logit_counts import BackendResult
from .verify import VerifyReport


def verify_table(report: VerifyReport) -> Table:
    """Return one row per backend: accuracy and, if anything was compared, the differences."""
    title = f"{report.model.path} ({report.format}, {report.input} input), {report.images} images"
    notes = (
        _verdict(report),
        *(describe_difference(comparison) for comparison in report.comparisons),
        *_outputs(report),
        *(f"Note: {warning}" for warning in report.warnings),
    )
    columns: list[Column | str] = ["backend", f"{report.metric or 'metric'} %"]
    numbers = "logits" if report.metric == "top-1" else "numbers"
    if report.backends:
        columns += [
            f"differing {numbers}",
            "changed classes",
            "largest difference",
            Column(heading="result", text=True),
        ]
    table = Table(title, columns, notes)
    blank = [""] * (len(columns) - 2)
    table.row(report.reference, _percent(report.reference_accuracy), *blank)
    for backend in report.backends:
        table.row(
            backend.name,
            _percent(backend.accuracy),
            str(backend.differing_logits),
            str(backend.changed_predictions),
            f"{backend.largest_difference:.4g}",
            _result(backend),
            style="red" if _fails(backend) else "",
        )
    return table


def _outputs(report: VerifyReport) -> list[str]:
    """Describe the compared numbers of each output, and the differences in the worst backend that must be equal."""
    results = [backend.outputs for backend in report.backends if backend.must_equal]
    return [
        f"Output {same[0].name}: {max(output.differing for output in same):,} of {same[0].elements:,} numbers differ."
        for same in zip(*results, strict=True)
    ]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def short_names(paths: set[str]) -> dict[str, str]:
    """Drop the folders of file names if they stay distinct."""
    unique = len({Path(path).name for path in paths}) == len(paths)
    return {path: Path(path).name if unique else path for path in paths}


def _fails(backend: BackendResult) -> bool:
    return backend.must_equal and backend.differing_logits > 0


def _result(backend: BackendResult) -> str:
    """Describe a backend's result in a word or two."""
    broken = f", {backend.not_finite} not finite" if backend.not_finite else ""
    if backend.differing_logits == 0:
        return f"equal{broken}"
    return f"{'DIFFERS' if backend.must_equal else 'may differ'}{broken}"


def _verdict(report: VerifyReport) -> str:
    if report.format == FLOAT:
        return "Accuracy alone: the float32 baseline has no integer reference, so nothing was compared bit for bit."
    if report.exact is None:
        return "Nothing had to be equal: the file has float parts."
    if report.exact:
        number = "logit" if report.metric == "top-1" else "number"
        return f"Exact: every backend that must equal the integer reference does, in every {number}."
    wrong = [backend.name for backend in report.backends if _fails(backend)]
    return f"Not exact: {', '.join(wrong)} must equal the integer reference and does not."
