"""The results on several targets, as a table."""

from __future__ import annotations

from qil_deploy.terminal import Column, Table

from .report import TargetResult, TargetsReport


def targets_table(report: TargetsReport) -> Table:
    """Return one row per target: the number of comparisons, and the differences."""
    columns = (
        *("target", "codes compared", "codes differing", "logits of images", "logits differing", "median ms"),
        Column(heading="ONNX Runtime", text=True),
    )
    table = Table(report.model.path, columns, [_verdict(report)])
    for result in report.targets:
        table.row(result.target, *_cells(result), style=_style(result))
    return table


def _cells(result: TargetResult) -> list[str]:
    if result.codes is None:
        return ["-", "-", "-", "-", "-", "skipped" if result.skipped is not None else "failed"]
    more, latency, environment = result.logits, result.codes.latency, result.codes.environment
    return [
        f"{result.codes.compared_elements:,}",
        str(result.codes.differing),
        "-" if more is None else f"{more.images:,}",
        "-" if more is None else str(more.differing),
        "-" if latency is None else f"{latency.median_ms:.3f}",
        environment.onnxruntime,
    ]


def _style(result: TargetResult) -> str:
    if result.failed is not None or any(report.differing for report in result.reports):
        return "red"
    return "dim" if result.skipped is not None else ""


def _verdict(report: TargetsReport) -> str:
    if report.exact is None:
        return "No target ran."
    if report.exact:
        return "Exact: every code and logit is that of the integer reference."
    if not any(device.differing for result in report.targets for device in result.reports):
        return "Not finished: see below."
    return "Not exact: see below."


def targets_remarks(report: TargetsReport) -> list[str]:
    """Return the lines below the table: skipped and failed targets, kernels, and the first tensors that differ."""
    remarks = []
    for result in report.targets:
        if result.skipped is not None:
            remarks.append(f"{result.target} was skipped: {result.skipped}")
        if result.failed is not None:
            remarks.append(result.failed)
        if result.codes is not None and result.codes.kernels:
            remarks.append(f"{result.target} ran with the kernel library. {'; '.join(result.codes.kernels)}.")
        for device in result.reports:
            for level in device.levels:
                first = level.first_difference
                if first is not None:
                    remarks.append(
                        f"{result.target}, level {level.level}: {first.tensor!r} is the first tensor that differs, in "
                        f"{first.differing:,} of {first.elements:,} elements, first at {list(first.index or ())}, by "
                        f"{first.largest_step or 0:g} at most."
                    )
    return remarks
