"""`bench`: how long does one inference take?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.errors import ConfigError

_INTERRUPTED = 130  # what shells expect after Ctrl-C
_CACHES = {"native": "warm,cold", "wasm": "warm"}


def bench_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL.onnx...", help="ONNX files; ratios refer to the first.")
    ],
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    target: Annotated[
        str, typer.Option(help="native (this machine), or wasm: ONNX Runtime Web in a headless Chromium.")
    ] = "native",
    caches: Annotated[
        str | None,
        typer.Option(
            help="States of the caches before each run: warm, cold, or both. [default: warm,cold; in a browser warm]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per run.")] = 1,
    repeats: Annotated[int, typer.Option(help="Measured runs of each model in each setting.")] = 100,
    warmup: Annotated[int, typer.Option(help="Rounds of runs before them that are not counted.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the random inputs, the order of the models and the intervals.")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Say where each model's time goes, by operator.")] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a model that does not load and run once is given up.")
    ] = 120.0,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    """Measure the latency of several models, interleaved, in ONNX Runtime, how sure it is, and what else they cost.

    A model that cannot be measured is named, and the exit code is 2; the others are measured all the same.
    """
    from rich.console import Console
    from rich.progress import Progress

    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests import BenchOptions, write_report
    from qil_deploy.runtime_tests.bench.table import bench_tables

    if target not in _CACHES:
        raise ConfigError(f"--target is {target!r}; bench measures on {', '.join(_CACHES)}.")
    if target == "wasm":
        from qil_deploy.runtime_tests.browser.bench import benchmark_in_browser as measure
    else:
        from qil_deploy.runtime_tests import benchmark as measure
    options = BenchOptions(
        threads=parse_threads(threads),
        caches=tuple((_CACHES[target] if caches is None else caches).split(",")),
        batch=batch,
        repeats=repeats,
        warmup=warmup,
        seed=seed,
        profile=profile,
        timeout=timeout,
    )
    if json is not None:
        ensure_writable(json)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        report = measure(
            models,
            options,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    try:
        if json is not None:
            write_report(json, report)
    finally:  # what took minutes is shown even where it cannot be written
        console = Console(markup=False)
        for table in bench_tables(report):
            console.print(table)
        for warning in report.warnings:
            console.print(f"Note: {warning}", soft_wrap=True)
    for failure in report.failures:
        Console(stderr=True, markup=False).print(f"Error: {failure.reason}", soft_wrap=True)
    if report.failures:
        raise typer.Exit(2)
    missing = set(options.threads) - {latency.threads for latency in report.latencies}
    if missing or any(len(latency.samples_ns) < repeats for latency in report.latencies):
        raise typer.Exit(_INTERRUPTED)


def parse_threads(text: str) -> tuple[int, ...]:
    """Turn "1,2" into (1, 2).

    Raises:
        ConfigError: an entry is not a whole number.
    """
    try:
        return tuple(int(entry) for entry in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--threads is {text!r}; give whole numbers separated by commas, like 1,2.") from error
