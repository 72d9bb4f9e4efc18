"""Write the tables of docs/benchmarks.md, and its plot, from the reports of the other commands.

    python benchmarks/write_tables.py runs/benchmarks

A table stands between `<!-- NAME -->` and `<!-- end -->`; tables without a report are not changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import export_cost
import exporters
import openvino_agreement
import step_growth
import step_growth_plot
import step_time
from qil_deploy.errors import DataError
from qil_deploy.files import write_bytes, write_text
from qil_deploy.runtime_tests import BenchReport, read_report
from qil_deploy.terminal import Console
from tables import describe, markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
GROWTH_PLOT = "step_growth.svg"  # in the folder of the page
_TABLE = re.compile(r"(?P<begin><!-- (?P<name>(?!end)\w+) -->\n)(?P<table>.*?)(?P<end><!-- end -->)", re.DOTALL)


def main(
    reports: Annotated[Path, typer.Argument(help="Folder with the reports: --out of the other commands.")],
    page: Annotated[Path, typer.Option(help="The page to rewrite.")] = PAGE,
) -> None:
    """Replace the tables of a page, and the plot in its folder, with the latest measurements."""
    replaced = [name for name in table_names(page.read_text()) if (reports / f"{name}.json").is_file()]
    tables = {name: table_of(name, reports) for name in replaced}
    if "step_growth" in replaced:
        growth = read_report(reports / "step_growth.json", step_growth.StepGrowthReport)
        write_bytes(page.parent / GROWTH_PLOT, step_growth_plot.growth_svg(growth))
    write_text(page, with_tables(page.read_text(), tables))
    Console().print(f"Wrote {', '.join(replaced) or 'no table'} into {page}.")


def table_names(page: str) -> list[str]:
    """Return the names of the tables of a page, in order."""
    return [match["name"] for match in _TABLE.finditer(page)]


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Return `page` with its tables replaced by the given ones of the same name.

    Raises:
        DataError: the page has no markers for one of them.
    """
    missing = tables.keys() - set(table_names(page))
    if missing:
        raise DataError(f"the page has no markers <!-- {sorted(missing)[0]} --> ... <!-- end --> for a table.")

    def replace(match: re.Match[str]) -> str:
        return match["begin"] + tables.get(match["name"], match["table"]) + match["end"]

    return _TABLE.sub(replace, page)


def table_of(name: str, reports: Path) -> str:
    """Return the Markdown of the report `reports/name.json`, with a line on the machine.

    Raises:
        DataError: the report is damaged.
    """
    path = reports / f"{name}.json"
    if name == "export_cost":
        cost = read_report(path, export_cost.ExportCostReport)
        parts = [markdown_table(export_cost.cost_rows(cost)), f"{describe(cost.environment)}."]
    elif name == "openvino":
        agreement = read_report(path, openvino_agreement.OpenvinoReport)
        parts = [
            markdown_table(openvino_agreement.agreement_rows(agreement)),
            f"{openvino_agreement.environment_line(agreement)}.",
        ]
    elif name == "step_time":
        steps = read_report(path, step_time.StepTimeReport)
        parts = [
            markdown_table(step_time.step_rows(steps)),
            markdown_table(exporters.goal_rows(steps.verdicts)),
            *exporters.skipped_lines(steps.skipped),
            f"{step_time.where(steps)}.",
        ]
    elif name == "step_growth":
        growth = read_report(path, step_growth.StepGrowthReport)
        parts = [
            f"![Time of a quantized step in float steps, by batch and by layers]({GROWTH_PLOT})",
            markdown_table(step_growth.growth_rows(growth)),
            markdown_table(exporters.goal_rows(step_growth.judge(growth.cases))),
            f"{step_growth.where(growth)}.",
        ]
    elif name.endswith("_wasm"):
        bench = read_report(path, BenchReport)
        where = f"{describe(bench.environment)} (Web), {bench.latencies[0].target}"
        parts = [
            markdown_table(exporters.latency_rows(bench)),
            f"{where}, medians of {bench.repeats} interleaved runs.",
            *(f"Note: {warning}" for warning in bench.warnings),
        ]
    else:
        report = read_report(path, exporters.ExportersReport)
        parts = [
            markdown_table(exporters.latency_rows(report.bench)),
            markdown_table(exporters.goal_rows(report.verdicts)),
            *exporters.skipped_lines(report.skipped),
            f"{describe(report.bench.environment)}, medians of {report.bench.repeats} interleaved runs.",
            *(f"Note: {warning}" for warning in report.bench.warnings),
        ]
    return "\n" + "\n\n".join(parts) + "\n\n"


if __name__ == "__main__":
    typer.run(main)
