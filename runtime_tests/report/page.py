"""The page: the verdict first, then its grounds. `templates/` defines its form, this module its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qil_deploy.pages import page_environment

from .chart import Chart, Mark
from .comparisons import accuracy_rows, changed_figures, compared_models, figure_of, step_of
from .deployment import DeploymentReport
from .figures import LATENCY, Remark, Run
from .models import model_labels, models_of
from .settings import instruction_settings, latency_settings
from .text import FILTERS
from .verdict import DIFFERS, EQUAL, INCOMPLETE, NOT_COMPARED

TEMPLATES = page_environment(Path(__file__).parent / "templates")
# What each line of the certificate bounds; docs/numerics.md has the details.
_CERTIFICATE = {
    "int32": "largest accumulator",
    "int16": "largest sum of a pair of products",
    "matmul": "largest sum that float32 has to hold",
    "ties": "closest that a rounding comes to a tie",
    "float": "operators that compute in float",
    "weights": "weight codes that differ from the checkpoint's",
}
TEMPLATES.filters |= FILTERS | {"figure_of": figure_of, "step_of": step_of}
_ORDER = (DIFFERS, INCOMPLETE, EQUAL, NOT_COMPARED)


def render(report: DeploymentReport) -> str:
    """Return the page as self-contained HTML."""
    runs, labels = report.runs, model_labels(report.runs)
    files = models_of(runs)
    sizes = [(labels[file.sha256], file.bytes) for file in files if file.bytes is not None]
    held_back = {each.model for run in runs for each in run.findings}
    diagnosed = dict.fromkeys(model for run in runs for model in run.diagnosed)
    verdicts = report.verdict.models
    return TEMPLATES.get_template("report.html.jinja").render(
        report=report,
        title=f"Deployment report: {', '.join(run.name for run in runs)}",
        several=len(runs) > 1,
        labels=labels,
        verdicts=sorted(verdicts, key=lambda each: _ORDER.index(each.status) if each.status in _ORDER else 0),
        grave=_remarks(report, grave=True),
        remarks=_remarks(report, grave=False),
        files=files,
        sizes=Chart(
            "Size of the file", [Mark(label=name, text=f"{size:,} bytes", value=size) for name, size in sizes], "bytes"
        ),
        certificate_lines=_CERTIFICATE,
        compared=compared_models(runs),
        accuracies=accuracy_rows(runs),
        latencies=latency_settings(runs),
        doubts=_of_runs(runs, lambda remark: remark.about == LATENCY),
        counts=instruction_settings(runs),
        changed=changed_figures(report.changes),
        diagnosed=diagnosed,
        healthy=[labels[model] for model in diagnosed if model not in held_back],
    )


def _remarks(report: DeploymentReport, *, grave: bool) -> list[str]:
    """Return the reservations about figures; the latency section has its own."""
    own = _of_runs(report.runs, lambda remark: remark.grave == grave and remark.about != LATENCY)
    return [*(remark.text for remark in report.remarks if remark.grave == grave), *own]


def _of_runs(runs: Sequence[Run], wanted: Callable[[Remark], bool]) -> list[str]:
    """Return the texts of some remarks about runs, with the run's name if there are several runs."""
    texts = [(run.name, remark.text) for run in runs for remark in run.remarks if wanted(remark)]
    return [f"{name}: {text}" if len(runs) > 1 else text for name, text in texts]
