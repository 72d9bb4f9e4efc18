"""Sections that are tables: models, exactness, accuracy, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from qil_deploy.html_elements import Child, element, table

from .figures import Exactness, Model, NotRun, Run
from .gathered import NATIVE
from .plots import Mark, bar_chart
from .text import (
    NOT_MEASURED,
    bits,
    count,
    digest,
    head,
    missing,
    model_labels,
    models_of,
    note,
    percent,
    plural,
    state,
    words,
)

_LONG, _START = 160, 60  # characters
_LEVELS = ("disabled", "basic", "extended", "all")
# What each line of the certificate bounds; docs/numerics.md has the whole of it.
_LINES = {
    "int32": "largest accumulator",
    "int16": "largest sum of a pair of products",
    "matmul": "largest sum that float32 has to hold",
    "ties": "closest that a rounding comes to a tie",
    "float": "operators that compute in float",
    "weights": "weight codes that differ from the checkpoint's",
}


def models_section(runs: Sequence[Run]) -> list[Child]:
    """Return which files were measured, what they say of themselves, and their sizes."""
    models = models_of(runs)
    labels = model_labels(runs)
    if not models:
        return [missing("No model was measured.")]
    sized = [(model, model.bytes) for model in models if model.bytes is not None]
    bars = [Mark(label=labels[model.sha256], text=f"{size:,} bytes", value=size) for model, size in sized]
    heads = ("model", "sha256", "bytes", "format", "input", "weights stored", head("bits of layers"), "operator set")
    return [
        table((*heads, head("certificate")), (_model_row(model, labels) for model in models), "Models"),
        *(_certificate(model, labels) for model in models if model.content is not None and model.content.certificate),
        *([bar_chart("Size of the file", bars, "bytes")] if len(bars) > 1 else []),
    ]


def _model_row(model: Model, labels: dict[str, str]) -> list[Child]:
    start: list[Child] = [labels[model.sha256], element("td", digest(model.sha256)), count(model.bytes)]
    content = model.content
    if content is None:
        return [*start, *["unknown"] * 5, words(model.unread or "unknown")]
    certificate = content.certificate
    broken = [line.name for line in certificate if not line.worst <= line.bound]
    if not certificate:
        said = words("none: the file is not quantized" if content.format == "float" else "none")
    elif broken:
        said = words(element("b", f"broken: {', '.join(broken)}", class_="state differs"))
    else:
        said = words(f"all {len(certificate)} lines hold")
    layers = words(bits(content.weight_bits))
    return [*start, content.format, content.input, content.weights, layers, str(content.opset), said]


def _certificate(model: Model, labels: dict[str, str]) -> Element:
    lines = () if model.content is None else model.content.certificate
    rows: list[list[Child]] = [
        [line.name, words(_LINES.get(line.name, "")), f"{line.worst:,.4g}", f"{line.bound:,.4g}", line.where or "-"]
        for line in lines
    ]
    heads = ("line", head("what it bounds"), "worst", "bound", "where")
    title = f"Certificate of {labels[model.sha256]}"
    return element("details", element("summary", title), table(heads, rows, title))


def exactness_section(runs: Sequence[Run]) -> list[Child]:
    """Return, for each model, how many numbers differ on each target at each level."""
    labels = model_labels(runs)
    children: list[Child] = []
    for model in models_of(runs):
        own = [(run, row) for run in runs for row in run.exactness if row.model == model.sha256]
        gaps = [(run, gap) for run in runs for gap in run.not_run if gap.model == model.sha256]
        if own or gaps:
            children += [element("h3", labels[model.sha256]), _exactness_table(own, gaps, labels[model.sha256], runs)]
    if not children:
        return [missing("Not measured: nothing was compared with the integer reference.")]
    explanation = (
        "How many of the numbers compared are not equal to those of the integer reference, without tolerance, at each "
        "graph-optimization level of ONNX Runtime. Codes: every tensor of a few images. Logits: the network's results."
        " Each level counts by itself."
    )
    return [note(explanation), *children]


def _exactness_table(
    own: Sequence[tuple[Run, Exactness]], gaps: Sequence[tuple[Run, NotRun]], name: str, runs: Sequence[Run]
) -> Element:
    found = {row.level for _, row in own if row.level is not None}
    levels = [*(level for level in _LEVELS if level in found), *sorted(found.difference(_LEVELS))]
    groups: dict[tuple[object, ...], list[Exactness]] = {}
    for run, row in own:
        group = (run.name, row.target, row.backend, row.what, row.elements, row.images, row.level is None)
        groups.setdefault(group, []).append(row)
    # This machine first, then targets in the order they are met.
    places = {target: index for index, target in enumerate(dict.fromkeys([NATIVE, *(row.target for _, row in own)]))}
    rows: list[list[Child]] = []
    for (run_name, *_), group_rows in sorted(groups.items(), key=lambda group: places[group[1][0].target]):
        first = group_rows[0]
        what = words(f"{plural(first.elements, first.what[:-1])} of {plural(first.images, 'image')}")
        where = [what, words(first.backend), *run_cell(str(run_name), runs)]
        rows.append([first.target, *_level_cells(group_rows, levels), *where])
    width = str(max(1, len(levels)))
    for run, gap in gaps:
        said = f"{'failed' if gap.failed else 'not run'}: {gap.reason}"
        cell = element("td", said, class_="words incomplete", colspan=width)
        rows.append([gap.target, cell, words("-"), words("-"), *run_cell(run.name, runs)])
    heads = ("target", *(levels or ["differ"]), head("of"), head("backend"), *run_head(runs))
    return table(heads, rows, f"Exactness of {name}")


def _level_cells(rows: Sequence[Exactness], levels: Sequence[str]) -> list[Element]:
    """Return one cell per level, or one across all of them for a backend that has none."""
    by_level = {row.level: row for row in rows}
    if None in by_level:
        cell = _differing(by_level[None])
        cell.set("colspan", str(max(1, len(levels))))
        return [cell]
    return [_differing(by_level[level]) if level in by_level else _unknown() for level in levels]


def _unknown() -> Element:
    return element("td", NOT_MEASURED, class_="missing")


def _differing(row: Exactness) -> Element:
    changed = "" if not row.changed_classes else f", {plural(row.changed_classes, 'class')} changed"
    changed = changed.replace("classs", "classes")
    if row.differing == 0:
        return state("0", "equal")
    if row.must_equal:
        return state(f"{row.differing:,} differ{changed}", "differs")
    return element("td", f"{row.differing:,} (may differ){changed}")


def run_head(runs: Sequence[Run]) -> list[Child]:
    """Return the heading of a column that says which run a row is of, where there are several."""
    return [head("run")] if len(runs) > 1 else []


def run_cell(name: str, runs: Sequence[Run]) -> list[Child]:
    """Return the cell of that column."""
    return [words(name)] if len(runs) > 1 else []


def accuracy_section(runs: Sequence[Run]) -> list[Child]:
    """Return top-1 of every backend, runs side by side; backends of one model with the same figures share a row."""
    labels = model_labels(runs)
    rows: list[list[Child]] = []
    for model, label in labels.items():
        figures: dict[str, list[str]] = {}
        for index, run in enumerate(runs):
            for row in run.accuracies:
                if row.model == model:
                    cells = figures.setdefault(row.backend, [NOT_MEASURED] * len(runs))
                    text = f"{percent(row.accuracy)} of {row.images:,}"
                    cells[index] = text if cells[index] in (NOT_MEASURED, text) else f"{cells[index]}; {text}"
        alike: dict[tuple[str, ...], list[str]] = {}
        for backend, cells in figures.items():
            alike.setdefault(tuple(cells), []).append(backend)
        rows += [[label, *cells, words(", ".join(backends))] for cells, backends in alike.items()]
    if not rows:
        return [missing()]
    names = [run.name for run in runs] if len(runs) > 1 else ["top-1"]
    return [
        note("Share of the images whose class is right (top-1)."),
        table(("model", *names, head("backends")), rows, "Accuracy"),
    ]


def findings_section(runs: Sequence[Run]) -> list[Child]:
    """Return what `doctor` says of the models it was asked about."""
    labels = model_labels(runs)
    diagnosed = dict.fromkeys(model for run in runs for model in run.diagnosed)
    if not diagnosed:
        return [missing("Not measured: doctor was not run on these models.")]
    rows: list[list[Child]] = [
        [labels[each.model], each.severity, words(each.what), str(each.count), words(each.remedy)]
        for run in runs
        for each in dict.fromkeys(run.findings)
    ]
    heads = ("model", "severity", head("found"), "places", head("what to do"))
    held_back = {each.model for run in runs for each in run.findings}
    healthy = [labels[model] for model in diagnosed if model not in held_back]
    return [
        *([table(heads, rows, "Findings")] if rows else []),
        *([element("p", f"Nothing holds back {', '.join(healthy)}.")] if healthy else []),
    ]


def not_run_section(runs: Sequence[Run]) -> list[Child]:
    """Return what was skipped or failed, and why."""
    rows = [
        [gap.name, gap.target, *run_cell(run.name, runs), "failed" if gap.failed else "skipped", words(gap.reason)]
        for run in runs
        for gap in run.not_run
    ]
    if not rows:
        return [element("p", "Nothing that was asked for is missing.")]
    return [table(("model", "target", *run_head(runs), "", head("why")), rows, "What was not run")]


def environment_section(runs: Sequence[Run]) -> list[Child]:
    """Return software and hardware of every target."""
    children: list[Child] = []
    for run in runs:
        for each in run.environments:
            name = f"{run.name}: {each.target}" if len(runs) > 1 else each.target
            children.append(element("h3", f"{name} ({', '.join(each.measured)})"))
            pairs = ((element("dt", fact.name), element("dd", *_fold(fact.value))) for fact in each.facts)
            children.append(element("dl", *_flat(pairs)))
    return children or [missing("Unknown.")]


def _fold(text: str) -> list[Child]:
    """Return a text, folded away if it is long."""
    return [text] if len(text) <= _LONG else [element("details", element("summary", f"{text[:_START]}..."), text)]


def _flat(pairs: Iterable[Iterable[Element]]) -> Iterable[Element]:
    return (each for pair in pairs for each in pair)


def sources_section(runs: Sequence[Run]) -> list[Child]:
    """Return the files that the figures are from."""
    rows = [
        [words(source.path), *run_cell(run.name, runs), source.schema, element("td", digest(source.sha256))]
        for run in runs
        for source in run.sources
    ]
    return [table((head("file"), *run_head(runs), "schema", "sha256"), rows, "Sources")]
