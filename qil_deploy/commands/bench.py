"""`bench`: measure the latency of an inference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qil_deploy.errors import ConfigError

from .kernel_option import NO_KERNELS_IN_BROWSERS, KernelOption, named_library
from .show_reports import measure_and_show

if TYPE_CHECKING:
    from qil_deploy.runtime_tests import BenchOptions, BenchReport
    from qil_deploy.runtime_tests.instructions import CountOptions
    from qil_deploy.runtime_tests.kernel_library import KernelLibrary

_CACHES = {"native": "warm,cold", "wasm": "warm"}
_EMULATED = ("haswell", "arm64:")


def bench_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="MODEL.onnx...", help="ONNX files; ratios refer to the first.")
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    target: Annotated[
        str,
        typer.Option(
            help="native (this machine), wasm (ONNX Runtime Web in a headless Chromium); or haswell and arm64:CPU, "
            "where instructions are counted instead of times."
        ),
    ] = "native",
    caches: Annotated[
        str | None,
        typer.Option(
            help="States of the caches before each run: warm, cold, or both. [default: warm,cold; in a browser warm]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per run.")] = 1,
    repeats: Annotated[
        int | None,
        typer.Option(help="Measured runs of each model in each setting. [default: 100; of instructions 3]"),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Warm-up rounds, not counted. [default: 10; of instructions 1]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the inputs, the order of the models and the intervals.")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Show each model's time by operator.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that a model may take to load and run once. [default: 120; emulated 600]"),
    ] = None,
    kernels: KernelOption = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Measure nothing; say which kernels of --kernels this processor gets, which not and why, and which "
            "each layer of the models gets.",
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    """Measure latency with confidence intervals, memory and size of several models in ONNX Runtime, interleaved.

    On an emulated target, count the instructions of one inference: a proxy, not a time.

    A model that cannot be measured is named, the others are measured, and the exit code is 2.
    """
    library = named_library(kernels)
    if explain:
        _explain(models or (), library)
        return
    models = models or []
    if library is not None and target == "wasm":
        raise ConfigError(NO_KERNELS_IN_BROWSERS)
    if target.startswith(_EMULATED):
        from qil_deploy.runtime_tests.instructions import CountOptions

        if threads != "1" or caches is not None or profile:
            raise ConfigError(
                f"on {target} instructions of one thread are counted; leave --threads, --caches and --profile out."
            )
        counting = CountOptions(
            batch=batch,
            repeats=3 if repeats is None else repeats,
            warmup=1 if warmup is None else warmup,
            seed=seed,
            timeout=600.0 if timeout is None else timeout,
            kernels=None if library is None else library.path,
        )
        _count_instructions(models, target, counting, json)
        return
    if target not in _CACHES:
        raise ConfigError(f"--target is {target!r}; bench measures on {', '.join(_CACHES)}, haswell, arm64:CPU.")
    from qil_deploy.runtime_tests import BenchOptions

    options = BenchOptions(
        threads=parse_threads(threads),
        caches=tuple((_CACHES[target] if caches is None else caches).split(",")),
        batch=batch,
        repeats=100 if repeats is None else repeats,
        warmup=10 if warmup is None else warmup,
        seed=seed,
        profile=profile,
        timeout=120.0 if timeout is None else timeout,
    )
    _bench_times(models, target, options, json, library)


def _explain(models: Sequence[Path], library: KernelLibrary | None) -> None:
    """Print the choices of a kernel library on this processor, and for each layer of some files."""
    from qil_deploy.runtime_tests.explain_kernels import layer_kernels
    from qil_deploy.terminal import Console

    if library is None:
        raise ConfigError("--explain is about kernels; give --kernels installed, or the path of a library.")
    console = Console()
    for line in library.explain():
        console.print(line, soft_wrap=True)
    for path in models:
        lines = layer_kernels(path, library)
        console.print(f"{path}: {len(lines)} nodes in kernels of the library", soft_wrap=True)
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)


def _count_instructions(models: Sequence[Path], target: str, options: CountOptions, json: Path | None) -> None:
    """Count the instructions of one inference of each model in an emulator, whose times mean nothing."""
    from qil_deploy.runtime_tests.instructions import count_instructions
    from qil_deploy.runtime_tests.instructions.table import instructions_table
    from qil_deploy.runtime_tests.targets import find_target

    found = find_target(target)
    measure_and_show(
        lambda tell: count_instructions(models, found, options, progress=tell),
        json,
        tables=lambda report: [instructions_table(report)] if report.models else [],
        interrupted=lambda report: report.interrupted,
    )


def _bench_times(
    models: Sequence[Path], target: str, options: BenchOptions, json: Path | None, library: KernelLibrary | None
) -> None:
    """Measure, print the tables, write the report; exit with 2 after a failure, with 130 after Ctrl-C."""
    from qil_deploy.runtime_tests.bench.table import bench_tables

    if target == "wasm":
        from qil_deploy.runtime_tests.browser.bench import benchmark_in_browser as measure
    else:
        from qil_deploy.runtime_tests import benchmark

        measure = partial(benchmark, kernels=library)

    def interrupted(report: BenchReport) -> bool:
        missing = set(options.threads) - {latency.threads for latency in report.latencies}
        return bool(missing) or any(len(latency.samples_ns) < options.repeats for latency in report.latencies)

    measure_and_show(
        lambda tell: measure(models, options, progress=tell), json, tables=bench_tables, interrupted=interrupted
    )


def parse_threads(text: str) -> tuple[int, ...]:
    """Turn "1,2" into (1, 2).

    Raises:
        ConfigError: an entry is not a whole number.
    """
    try:
        return tuple(int(entry) for entry in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--threads is {text!r}; give whole numbers separated by commas, like 1,2.") from error
