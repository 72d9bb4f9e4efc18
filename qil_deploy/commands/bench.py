"""`bench`: how long does one inference take?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.errors import ConfigError


def bench_command(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL.onnx...", help="ONNX files; ratios refer to the first.")
    ],
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    batch: Annotated[int, typer.Option(help="Images per run.")] = 1,
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 100,
    warmup: Annotated[int, typer.Option(help="Runs before them that are not counted.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the random inputs and of the order of the models.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    """Measure the latency of several models, interleaved, in ONNX Runtime."""
    from rich.console import Console

    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests import benchmark, write_report
    from qil_deploy.runtime_tests.tables import bench_table

    counts = parse_threads(threads)
    if json is not None:
        ensure_writable(json)
    report = benchmark(models, threads=counts, batch=batch, repeats=repeats, warmup=warmup, seed=seed)
    if json is not None:
        write_report(json, report)
    Console(markup=False).print(bench_table(report))


def parse_threads(text: str) -> tuple[int, ...]:
    """Turn "1,2" into (1, 2).

    Raises:
        ConfigError: an entry is not a whole number.
    """
    try:
        return tuple(int(entry) for entry in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--threads is {text!r}; give whole numbers separated by commas, like 1,2.") from error
