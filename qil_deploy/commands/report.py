"""`report`: combine measurements on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.errors import ConfigError


def report_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="JSON files of verify, verify --target, phone, bench, doctor or report, folders of them, or folders "
            "of such folders; several runs are compared with the first.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.html", help="The page to write.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON, too.")] = None,
) -> None:
    """Combine reports into one self-contained page: exactness, accuracy, latency, size.

    Exits with 1 if a number differs that had to be equal, with 2 if none does, but a target failed or a report could
    not be read, and with 0 otherwise.
    """
    from qil_deploy.files import ensure_writable, write_text
    from qil_deploy.reports import write_report
    from qil_deploy.runtime_tests.report import collect, render
    from qil_deploy.runtime_tests.report.figures import FILES
    from qil_deploy.runtime_tests.report.verdict import DIFFERS, INCOMPLETE
    from qil_deploy.terminal import Console

    outputs = [path for path in (output, json_file) if path is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ConfigError(f"{output} is named for the page and for the JSON; name two files.")
    for path in outputs:
        ensure_writable(path)
    report = collect(runs)
    sources = {Path(source.path).resolve() for run in report.runs for source in run.sources}
    for path in outputs:
        if path.resolve() in sources:
            raise ConfigError(f"{path} is one of the reports that are read; name another file to write.")
    write_text(output, render(report))
    if json_file is not None:
        write_report(json_file, report)
    console = Console()
    console.print(report.verdict.sentence, style="bold", soft_wrap=True)
    for remark in (*report.remarks, *(remark for run in report.runs for remark in run.remarks)):
        if remark.about == FILES:
            console.print(remark.text, soft_wrap=True)
    console.print(f"The page is {output}.", soft_wrap=True)
    if report.verdict.status == DIFFERS:
        raise typer.Exit(1)
    if report.verdict.status == INCOMPLETE:
        raise typer.Exit(2)
