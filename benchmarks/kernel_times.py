"""Latency with the library of kernels, beside float and ONNX Runtime's int8, interleaved in one run.

    python benchmarks/kernel_times.py resnet18 resnet34 alexnet mobilenet_v2 --page docs/kernels.md

Networks are at 224x224, with random weights that spread like trained ones (`networks`). Each low-bit file is timed
without the library and with the set of kernels that it chooses on this processor. Written are the models and
`OUT/NETWORK.json`, the report of `bench`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from exporters import LAST_LAYER_OVERRIDES, times_as_fast
from networks import (
    CLASS_NAMES,
    DATA,
    PREPROCESSING,
    colour_images,
    normalized_batches,
    quantized_network,
    random_network,
)
from peers import export_onnxruntime_int8
from qil_deploy.commands.bench import parse_threads
from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.runtime_tests import BenchOptions, BenchReport, Latency, benchmark, write_report
from qil_deploy.runtime_tests.bench.report import WARM
from qil_deploy.runtime_tests.kernel_library import INSTALLED, KernelLibrary, find_kernel_library
from qil_deploy.terminal import Console
from tables import Rows, console_table, describe, markdown_table
from write_tables import with_tables

CALIBRATION_IMAGES = 8
FLOAT, INT8 = "float", "onnxruntime_int8"
BITS = (2, 4)


def main(
    networks: Annotated[list[str], typer.Argument(help="Names in training.models.MODELS.")],
    library: Annotated[str, typer.Option(help="The library of kernels, or 'installed'.")] = INSTALLED,
    out: Annotated[Path, typer.Option(help="Folder of models and reports.")] = Path("runs/benchmarks/kernels"),
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 100,
    page: Annotated[Path | None, typer.Option(help="A page to write the tables into, too.")] = None,
) -> None:
    """Write the models that are missing, time them, and write a table for each network."""
    console = Console()
    kernels = chosen(find_kernel_library(library))
    options = BenchOptions(threads=parse_threads(threads), caches=(WARM,), repeats=repeats)
    for network in networks:
        folder = out / network
        ensure_writable(out / f"{network}.json")
        paths = [folder / f"{name}.onnx" for name in (FLOAT, INT8, *(f"w{bits}a{bits}" for bits in BITS))]
        if not all(path.is_file() for path in paths):
            console.print(f"Writing models to {folder} ...")
            write_models(network, folder)
        console.print(f"Timing {network} ...")
        report = benchmark(paths, options, kernels=kernels)
        write_report(out / f"{network}.json", report)
        rows = rows_of(report)
        console.print(console_table(f"{network}: {describe(report.environment)}", rows))
        if page is not None:
            text = f"\n{markdown_table(rows)}\n\n{describe(report.environment)}, {repeats} interleaved runs.\n\n"
            write_text(page, with_tables(page.read_text(), {f"times_{network}": text}))


def chosen(library: KernelLibrary) -> KernelLibrary:
    """Return the library with the set that it chooses here forced, so that no other is timed.

    Raises:
        ConfigError: it chooses none.
    """
    choices = [line.partition(": ")[2].split()[0] for line in library.explain() if line.startswith("chosen for ")]
    names = [name for name in dict.fromkeys(choices) if name != "none"]
    if not names:
        raise ConfigError(f"{library.path} has no kernels that are faster on this processor; there is nothing to time.")
    return replace(library, kernel_set=names[0])


def write_models(network: str, folder: Path) -> None:
    """Write a network as float, as int8, and at each number of bits for kernels."""
    batches = normalized_batches(colour_images(CALIBRATION_IMAGES))
    model = random_network(network, batches, seed=0)
    ensure_writable(folder / f"{FLOAT}.onnx")
    export_float_onnx(model, folder / f"{FLOAT}.onnx", preprocessing=PREPROCESSING, class_names=CLASS_NAMES, data=DATA)
    export_onnxruntime_int8(folder / f"{FLOAT}.onnx", folder / f"{INT8}.onnx", batches)
    for bits in BITS:
        config = QuantConfig(weight_bits=bits, activation_bits=bits, overrides=LAST_LAYER_OVERRIDES.get(network, {}))
        export_onnx(
            quantized_network(model, config, batches),
            folder / f"w{bits}a{bits}.onnx",
            preprocessing=PREPROCESSING,
            class_names=CLASS_NAMES,
            data=DATA,
            options=ExportOptions(kernels=True),
        )


def rows_of(report: BenchReport) -> Rows:
    """One row per file and set: with each number of threads median, and times as fast as float and as int8."""
    latencies = {(name_of(row), row.threads): row for row in report.latencies}
    names, counts = list(dict.fromkeys(name for name, _ in latencies)), sorted({count for _, count in latencies})
    headings = ["model"]
    for count in counts:
        headings += [f"{count} thread{'s'[: count > 1]} ms", "x float", "x int8"]
    cells = []
    for name in names:
        row = [name]
        for count in counts:
            latency = latencies[name, count]
            peers = [latencies.get((peer, count)) for peer in (FLOAT, INT8)]
            row += [f"{latency.median_ms:.2f}", *(times_as_fast(latency, peer, seed=report.seed) for peer in peers)]
        cells.append(row)
    return Rows(headings=tuple(headings), cells=cells)


def name_of(latency: Latency) -> str:
    """Return a row's name: that of its file, and of the set of kernels."""
    name = Path(latency.model.path).stem
    return f"{name}, {latency.model.kernels}" if latency.model.kernels else name


if __name__ == "__main__":
    typer.run(main)
