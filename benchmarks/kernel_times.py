"""Measure latency with the kernel library, interleaved with float and ONNX Runtime's int8 in one run.

    python benchmarks/kernel_times.py resnet18 resnet34 alexnet mobilenet_v2 --page docs/kernels.md

Networks run at 224x224, with random weights distributed like trained ones (`networks`). Each low-bit file is timed
without the library and with the set of kernels that the library chooses on this processor. The script writes the models
and `OUT/NETWORK.json`, the report of `bench`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from exporters import latency_rows
from kernel_models import FLOAT, INT8, write_models
from qil_deploy.commands.bench import parse_threads
from qil_deploy.errors import ConfigError
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.runtime_tests import BenchOptions, benchmark, write_report
from qil_deploy.runtime_tests.bench.report import WARM
from qil_deploy.runtime_tests.kernel_library import INSTALLED, KernelLibrary, find_kernel_library
from qil_deploy.terminal import Console
from tables import console_table, describe, markdown_table
from write_tables import with_tables

BITS = (2, 4)


def main(
    networks: Annotated[list[str], typer.Argument(help="Names in training.models.MODELS.")],
    library: Annotated[str, typer.Option(help="The library of kernels, or 'installed'.")] = INSTALLED,
    out: Annotated[Path, typer.Option(help="Folder for models and reports.")] = Path("runs/benchmarks/kernels"),
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 100,
    page: Annotated[Path | None, typer.Option(help="A page into which the tables are also written.")] = None,
) -> None:
    """Write missing models, time them, and write a table for each network."""
    console = Console()
    kernels = chosen(find_kernel_library(library))
    options = BenchOptions(threads=parse_threads(threads), caches=(WARM,), repeats=repeats)
    for network in networks:
        folder = out / network
        ensure_writable(out / f"{network}.json")
        paths = [folder / f"{name}.onnx" for name in (FLOAT, INT8, *(f"w{bits}a{bits}" for bits in BITS))]
        if not all(path.is_file() for path in paths):
            console.print(f"Writing models to {folder} ...")
            write_models(network, folder, BITS)
        console.print(f"Timing {network} ...")
        report = benchmark(paths, options, kernels=kernels)
        write_report(out / f"{network}.json", report)
        rows = latency_rows(report)
        console.print(console_table(f"{network}: {describe(report.environment)}", rows))
        if page is not None:
            text = f"\n{markdown_table(rows)}\n\n{describe(report.environment)}, {repeats} interleaved runs.\n\n"
            write_text(page, with_tables(page.read_text(), {f"times_{network}": text}))


def chosen(library: KernelLibrary) -> KernelLibrary:
    """Return the library with its chosen set forced, so that no other set is timed.

    Raises:
        ConfigError: it chooses none.
    """
    choices = [line.partition(": ")[2].split()[0] for line in library.explain() if line.startswith("chosen for ")]
    names = [name for name in dict.fromkeys(choices) if name != "none"]
    if not names:
        raise ConfigError(f"{library.path} has no kernels that are faster on this processor; there is nothing to time.")
    return replace(library, kernel_set=names[0])


if __name__ == "__main__":
    typer.run(main)
