"""Reports as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from .bench import BenchReport
from .verify import REFERENCE, VerifyReport


def verify_table(report: VerifyReport) -> Table:
    """Return one row per backend: accuracy and what differs from the integer reference."""
    table = Table(
        title=f"{report.model.path} ({report.format}, {report.input} input), {report.images} images",
        caption="\n".join((_verdict(report), *(f"Note: {warning}" for warning in report.warnings))),
    )
    table.add_column("backend")
    table.add_column("must equal")
    for column in ("top-1 %", "differing logits", "changed predictions", "largest difference", "not finite"):
        table.add_column(column, justify="right")
    table.add_row(REFERENCE, "", f"{100 * report.reference_accuracy:.2f}", "", "", "", "")
    for backend in report.backends:
        table.add_row(
            backend.name,
            "yes" if backend.must_equal else "no",
            f"{100 * backend.accuracy:.2f}",
            str(backend.differing_logits),
            str(backend.changed_predictions),
            f"{backend.largest_difference:.6g}",
            str(backend.not_finite),
            style="red" if backend.must_equal and backend.differing_logits else None,
        )
    return table


def bench_table(report: BenchReport) -> Table:
    """Return one row per model and number of threads; times in milliseconds."""
    environment = report.environment
    table = Table(
        title=(f"latency, batch {report.batch}: {report.repeats} runs after {report.warmup} to warm up"),
        caption=(
            f"{environment.cpu}, {environment.cpus} CPUs, onnxruntime {environment.onnxruntime}, "
            f"numpy {environment.numpy}"
        ),
    )
    table.add_column("model", overflow="fold")
    columns = ("threads", "file kB", "load ms", "median ms", "p95 ms", "min ms", "spread ms", "ratio")
    for column in columns:
        table.add_column(column, justify="right")
    for latency in report.latencies:
        table.add_row(
            latency.model.path,
            str(latency.threads),
            f"{latency.model.bytes / 1000:.1f}",
            f"{latency.load_ms:.1f}",
            f"{latency.median_ms:.3f}",
            f"{latency.p95_ms:.3f}",
            f"{latency.min_ms:.3f}",
            f"{latency.iqr_ms:.3f}",
            f"{latency.ratio:.2f}",
        )
    return table


def _verdict(report: VerifyReport) -> str:
    if report.exact:
        return "Exact: every backend that must equal the integer reference does, in every logit."
    wrong = [b.name for b in report.backends if b.must_equal and b.differing_logits]
    return f"Not exact: {', '.join(wrong)} must equal the integer reference and does not."
