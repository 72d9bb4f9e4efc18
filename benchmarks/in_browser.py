"""Time the files of `exporters.py` in a browser: latency in ONNX Runtime Web, interleaved with float and int8.

    python -m qil_deploy target setup wasm
    python benchmarks/exporters.py resnet18 alexnet --out runs/benchmarks
    python benchmarks/in_browser.py resnet18 alexnet --threads 1,2 --out runs/benchmarks

The script writes `OUT/NETWORK_wasm.json`, from which `write_tables.py` generates the tables of docs/benchmarks.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exporters import latency_rows
from qil_deploy.commands.bench import parse_threads
from qil_deploy.errors import ModelFileError
from qil_deploy.files import ensure_writable
from qil_deploy.runtime_tests import BenchOptions, write_report
from qil_deploy.runtime_tests.bench.report import WARM
from qil_deploy.runtime_tests.browser.bench import benchmark_in_browser
from qil_deploy.terminal import Console
from tables import console_table, describe

MODELS = ("float", "onnxruntime_int8", "w4a4_qlinear", "w2a2_qlinear")


def main(
    networks: Annotated[list[str], typer.Argument(help="Networks that `exporters.py` exported.")],
    out: Annotated[
        Path, typer.Option(help="The --out folder of `exporters.py`; reports are written there, too.")
    ] = Path("runs/benchmarks"),
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the inputs and the order of the models.")] = 0,
) -> None:
    """Time exported networks in a headless browser."""
    console = Console()
    options = BenchOptions(threads=parse_threads(threads), caches=(WARM,), repeats=repeats, seed=seed)
    for network in networks:
        for path in model_paths(network, out):
            if not path.is_file():
                raise ModelFileError(f"{path} is missing; run: python benchmarks/exporters.py {network} --out {out}")
        ensure_writable(out / f"{network}_wasm.json")
    for network in networks:
        console.print(f"Timing {network} in a browser ...")
        report = benchmark_in_browser(model_paths(network, out), options)
        write_report(out / f"{network}_wasm.json", report)
        console.print(console_table(f"{network} in a browser: {describe(report.environment)}", latency_rows(report)))
        for warning in report.warnings:
            console.print(f"Note: {warning}")


def model_paths(network: str, out: Path) -> list[Path]:
    """Return the files to time, the float network first."""
    return [out / network / f"{model}.onnx" for model in MODELS]


if __name__ == "__main__":
    typer.run(main)
