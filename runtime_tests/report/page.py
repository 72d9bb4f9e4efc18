"""The page: what it comes to first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from qil_deploy.html_elements import Child, element, page

from . import plots
from .changes import changes_section
from .deployment import DeploymentReport, ModelVerdict
from .instruction_counts import instructions_section
from .tables import (
    accuracy_section,
    environment_section,
    exactness_section,
    findings_section,
    models_section,
    not_run_section,
    sources_section,
)
from .text import css_class, digest, note
from .timing import latency_section
from .verdict import DIFFERS, EQUAL, INCOMPLETE, NOT_COMPARED

STYLE = (
    plots.STYLE
    + """
.verdict { border: 2px solid var(--state); border-radius: 6px; padding: .25rem 1rem; margin: 1rem 0; }
.verdict > p:first-child { font-size: 1.25rem; font-weight: 600; color: var(--state); }
.grave h2 { border: 0; margin: 1rem 0 0; color: var(--state); }
.grave { border-left: 4px solid var(--state); padding-left: 1rem; }
.equal { --state: #1d7a3a; } .differs { --state: #b3261e; } .incomplete, .not-compared { --state: #8a5a00; }
@media (prefers-color-scheme: dark) {
  .equal { --state: #6cc88a; } .differs { --state: #ff8a80; } .incomplete, .not-compared { --state: #e8b45a; }
}
td.equal, td.differs, td.incomplete, td.not-compared, b.state { color: var(--state); }
td.differs, b.state { font-weight: 600; }
td.words, thead th.words { text-align: left; white-space: normal; min-width: 8rem; }
td.missing { white-space: normal; font-size: .75rem; line-height: 1.1; } dd summary { margin: 0; font-weight: inherit; }
code { font-size: .8125rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
p, li, dd { overflow-wrap: anywhere; } nav a { margin-right: .75rem; } .missing { color: var(--faint); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .125rem 1rem; font-size: .875rem; }
dt { color: var(--faint); } dd { margin: 0; }
@media print { nav { display: none; } td.words, thead th.words { min-width: 0; } td.missing { font-size: inherit; } }
"""
)


def render(report: DeploymentReport) -> str:
    """Return the page as HTML that needs nothing but itself."""
    runs = report.runs
    title = f"Deployment report: {', '.join(run.name for run in runs)}"
    sections: list[tuple[str, str, Sequence[Child]]] = [
        ("models", "Models", models_section(runs)),
        ("exactness", "Exactness", exactness_section(runs)),
        ("accuracy", "Accuracy", accuracy_section(runs)),
        ("latency", "Latency and memory", latency_section(runs)),
        ("instructions", "Instructions", instructions_section(runs)),
        ("runs", "Runs compared", changes_section(report)),
        ("findings", "Findings of doctor", findings_section(runs)),
        ("missing", "Not run", not_run_section(runs)),
        ("remarks", "Remarks", _remarks(report, grave=False)),
        ("environments", "Environments", environment_section(runs)),
        ("sources", "Sources", sources_section(runs)),
    ]
    shown = [entry for entry in sections if entry[2]]
    return page(
        title,
        element("h1", title),
        note(f"Written {report.written}. Every number is from the reports listed at the end."),
        _verdict(report),
        *_remarks(report, grave=True),
        element("nav", *_links(shown), aria_label="Sections"),
        *(element("section", element("h2", name, id=key), *content) for key, name, content in shown),
        style=STYLE,
    )


def _links(sections: Sequence[tuple[str, str, Sequence[Child]]]) -> list[Child]:
    links: list[Child] = []
    for key, name, _ in sections:
        links += [element("a", name, href=f"#{key}"), " "]
    return links


def _verdict(report: DeploymentReport) -> Element:
    """Return what it comes to, and the same of each model."""
    verdict = report.verdict
    order = (DIFFERS, INCOMPLETE, EQUAL, NOT_COMPARED)
    models = sorted(verdict.models, key=lambda each: order.index(each.status) if each.status in order else 0)
    items = [_model_verdict(each, several=len(report.runs) > 1) for each in models]
    return element(
        "div",
        element("p", verdict.sentence),
        element("ul", *items),
        class_=f"verdict {css_class(verdict.status)}",
        role="region",
        aria_label="Verdict",
    )


def _model_verdict(each: ModelVerdict, *, several: bool) -> Element:
    status = element("b", each.status, class_=f"state {css_class(each.status)}")
    run = f" in {each.run}" if several else ""
    return element(
        "li", element("code", each.name), " (", digest(each.model), f"){run}: ", status, ". ", " ".join(each.sentences)
    )


def _remarks(report: DeploymentReport, *, grave: bool) -> list[Child]:
    """Return what makes the figures say less than they seem to; the latency section has its own."""
    several = len(report.runs) > 1
    texts = [remark.text for remark in report.remarks if remark.grave == grave]
    for run in report.runs:
        own = [remark.text for remark in run.remarks if remark.grave == grave and remark.about != "latency"]
        texts += [f"{run.name}: {text}" if several else text for text in own]
    if not texts:
        return []
    items = element("ul", *(element("li", text) for text in texts))
    return [element("div", element("h2", "Read this first"), items, class_="differs grave")] if grave else [items]
