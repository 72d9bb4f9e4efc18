"""Compare exported networks with their peers: file size and latency, interleaved in one run.

    python benchmarks/exporters.py resnet18 alexnet --threads 1,2 --out runs/benchmarks

Each network gets random weights distributed like trained ones and is quantized on enlarged Fashion-MNIST images. The
script writes `OUT/NETWORK/MODEL.onnx` and the report `OUT/NETWORK.json`, from which `write_tables.py` generates the
tables of docs/benchmarks.md. A peer that is not installed is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from torch import Tensor, nn

from goals import GOALS, Verdict, judge
from networks import (
    CLASS_NAMES,
    DATA,
    PREPROCESSING,
    colour_images,
    normalized_batches,
    quantized_network,
    random_network,
)
from peers import export_brevitas_layers, export_brevitas_post_training, export_onnxruntime_int8
from qil_deploy.commands.bench import parse_threads
from qil_deploy.config import QuantConfig
from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
from qil_deploy.files import ensure_writable
from qil_deploy.runtime_tests import BenchOptions, BenchReport, Latency, benchmark, write_report
from qil_deploy.runtime_tests.bench.report import WARM
from qil_deploy.runtime_tests.bench.statistics import ratio_interval
from qil_deploy.terminal import Console
from qil_deploy.training.models import MODELS
from tables import Rows, console_table, describe

# The default of 7 bits in the last layer would by itself take 4.1 MB of AlexNet's file, an eighth to a quarter of it.
LAST_LAYER_OVERRIDES = {"alexnet": {"classifier.6": {"weight_bits": 4}}}


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A model that could not be written, and the reason."""

    model: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExportersReport:
    """Results for one network.

    Attributes:
        schema: `SCHEMA`.
        network: name in `training.models.MODELS`.
        bench: sizes and latencies, the float network first.
        verdicts: goals and whether they are met.
        skipped: models that are missing.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.exporters/2"

    schema: str
    network: str
    bench: BenchReport
    verdicts: tuple[Verdict, ...]
    skipped: tuple[Skipped, ...]


def main(
    networks: Annotated[list[str], typer.Argument(help="Names in training.models.MODELS.")],
    out: Annotated[Path, typer.Option(help="Folder for the models and reports.")] = Path("runs/benchmarks"),
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 100,
    images: Annotated[int, typer.Option(help="Images for calibration.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the inputs and the order of the models.")] = 0,
) -> None:
    """Export networks, and compare their latency with float, ONNX Runtime's int8 and Brevitas."""
    console = Console()
    unknown = [name for name in networks if name not in MODELS]
    if unknown:
        raise typer.BadParameter(f"unknown networks {', '.join(unknown)}; known are {', '.join(MODELS)}")
    counts = parse_threads(threads)
    batches = normalized_batches(colour_images(images))
    for name in networks:
        ensure_writable(out / f"{name}.json")
        report = compare(name, batches, out, threads=counts, repeats=repeats, seed=seed, console=console)
        write_report(out / f"{name}.json", report)
        console.print(console_table(f"{name}: {describe(report.bench.environment)}", latency_rows(report.bench)))
        for line in skipped_lines(report.skipped):
            console.print(line)
        console.print(console_table(f"{name}: goals", goal_rows(report.verdicts)))


def compare(
    network: str,
    batches: list[Tensor],
    out: Path,
    *,
    threads: tuple[int, ...],
    repeats: int,
    seed: int,
    console: Console,
) -> ExportersReport:
    """Write every model of one network to `out/network`, then measure them all, interleaved."""
    model = random_network(network, batches, seed=seed)
    paths, skipped = [], []
    for name, write in writers(network, model, batches, out / network).items():
        path = out / network / f"{name}.onnx"
        ensure_writable(path)
        console.print(f"Writing {path} ...")
        try:
            write(path)
        except ImportError as error:
            skipped.append(Skipped(model=name, reason=f"not installed ({error})"))
        else:
            paths.append(path)
    console.print(f"Timing {len(paths)} models of {network} ...")
    bench = benchmark(paths, BenchOptions(threads=threads, caches=(WARM,), repeats=repeats, seed=seed))
    for sentence in bench.warnings:
        console.print(f"Note: {sentence}")
    skipped += [Skipped(model=Path(failure.path).stem, reason=failure.reason.rstrip(".")) for failure in bench.failures]
    names = {str(path): path.stem for path in paths}
    return ExportersReport(
        schema=ExportersReport.SCHEMA,
        network=network,
        bench=bench,
        verdicts=tuple(judge(GOALS.get(network, ()), names, bench)),
        skipped=tuple(skipped),
    )


def writers(network: str, model: nn.Module, batches: list[Tensor], folder: Path) -> dict[str, Callable[[Path], object]]:
    """Return the functions that write each model of a network, by model name; the float model must come first."""

    def write_float(path: Path) -> None:
        export_float_onnx(model, path, preprocessing=PREPROCESSING, class_names=CLASS_NAMES, data=DATA)

    def ours(bits: int, options: ExportOptions, overrides: dict[str, Any] | None = None) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            config = QuantConfig(weight_bits=bits, activation_bits=bits, overrides=overrides or {})
            quantized = quantized_network(model, config, batches)
            export_onnx(
                quantized, path, preprocessing=PREPROCESSING, class_names=CLASS_NAMES, data=DATA, options=options
            )

        return write

    qlinear, qdq = ExportOptions(format="qlinear"), ExportOptions(format="qdq")
    overrides = LAST_LAYER_OVERRIDES.get(network)
    result: dict[str, Callable[[Path], object]] = {
        "float": write_float,
        "onnxruntime_int8": lambda path: export_onnxruntime_int8(folder / "float.onnx", path, batches),
        "w4a4_qlinear": ours(4, qlinear, overrides),
        "w2a2_qlinear": ours(2, qlinear, overrides),
        "w4a4_qdq": ours(4, qdq, overrides),
        "brevitas_w4a4": lambda path: export_brevitas_layers(model, path, batches),
        "brevitas_ptq_w4a4": lambda path: export_brevitas_post_training(model, path, batches),
    }
    if overrides:
        result |= {f"w{bits}a{bits}_7bit_end": ours(bits, qlinear) for bits in (4, 2)}
    return result


def latency_rows(bench: BenchReport) -> Rows:
    """Return one row per model: size, and for each number of threads median and speed relative to float and int8.

    A file that was timed with a set of kernels has an additional row for it.
    """
    latencies = {(_name_of(row), row.threads): row for row in bench.latencies}
    names, counts = list(dict.fromkeys(name for name, _ in latencies)), sorted({count for _, count in latencies})
    headings = ["model", "MB"]
    for count in counts:
        headings += [f"{count} thread{'s'[: count > 1]} ms", "x float", "x int8"]
    cells = []
    for name in names:
        row = [name, f"{latencies[name, counts[0]].model.bytes / 1e6:.2f}"]
        for count in counts:
            latency = latencies[name, count]
            peers = [latencies.get((peer, count)) for peer in ("float", "onnxruntime_int8")]
            times = [times_as_fast(latency, peer, seed=bench.seed) for peer in peers]
            row += [f"{latency.median_ms:.2f}", *times]
        cells.append(row)
    return Rows(headings=tuple(headings), cells=cells)


def _name_of(latency: Latency) -> str:
    name = Path(latency.model.path).stem
    return f"{name}, {latency.model.kernels}" if latency.model.kernels else name


def times_as_fast(latency: Latency, peer: Latency | None, *, seed: int) -> str:
    """Say how many times as fast a model is as a peer, with the bounds of that ratio (95 %, paired by round)."""
    if peer is None:
        return "-"
    text = f"{peer.median_ms / latency.median_ms:.2f}"
    bounds = None if latency is peer else ratio_interval(peer.samples_ns, latency.samples_ns, seed=seed)
    return text if bounds is None else f"{text} ({bounds.low:.2f}-{bounds.high:.2f})"


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Return one line for each missing model."""
    return [f"{entry.model} was skipped: {entry.reason}." for entry in skipped]


def goal_rows(verdicts: Sequence[Verdict]) -> Rows:
    """Return one row per goal."""
    cells = [[verdict.goal, f"{verdict.measured:.2f}", "met" if verdict.met else "MISSED"] for verdict in verdicts]
    return Rows(headings=("goal", "measured", "verdict"), cells=cells)


if __name__ == "__main__":
    typer.run(main)
