"""Measure how long a fresh process takes to import the modules that a device needs.

    python benchmarks/import_time.py [--python PYTHON] [--repeats N]

The script starts PYTHON (by default the current interpreter) N times for each line of the table, in a new random order
in every round. It prints the median, fastest and slowest wall time of the whole process, including start and end, and
its peak resident memory. The first line is Python alone; the cost of an import is the difference from it. A first
round, which fills file caches and compiles modules, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import numpy as np

from qil_deploy.runtime_tests.child_process import Ended, run_apart
from qil_deploy.terminal import Console
from tables import Rows, markdown_table

STARTS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "import onnxruntime": ("-c", "import onnxruntime"),
    "import qil_deploy": ("-c", "import qil_deploy"),
    "import qil_deploy.runtime_tests": ("-c", "import qil_deploy.runtime_tests"),
    "python -m qil_deploy --help": ("-m", "qil_deploy", "--help"),
}


def measure_starts(python: str, repeats: int, seed: int = 0) -> dict[str, list[Ended]]:
    """Start every process of `STARTS` `repeats` times, after one uncounted round.

    Raises:
        OSError: `python` cannot be started, or one of the processes failed.
    """
    generator = np.random.default_rng(seed)
    costs: dict[str, list[Ended]] = {name: [] for name in STARTS}
    names = list(STARTS)
    for round_number in range(repeats + 1):
        for index in generator.permutation(len(names)):
            # -P: do not import the package from the current folder.
            cost = run_apart([python, "-P", *STARTS[names[index]]], show_errors=True)
            if cost.exit_code != 0:
                raise OSError(f"{python} {' '.join(STARTS[names[index]])} ends with exit code {cost.exit_code}.")
            if round_number:
                costs[names[index]].append(cost)
    return costs


def start_rows(costs: dict[str, list[Ended]]) -> Rows:
    """Return one row per process: seconds and memory."""
    cells = []
    for name, runs in costs.items():
        seconds = [run.seconds for run in runs]
        numbers = (statistics.median(seconds), min(seconds), max(seconds))
        cells.append(
            [name, *(f"{number:.3f}" for number in numbers), f"{max(run.peak_bytes for run in runs) / 1e6:.0f}"]
        )
    return Rows(headings=("process", "median s", "fastest s", "slowest s", "peak MB"), cells=cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Time the imports that a device needs, each in a fresh process.")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to start [the current one]")
    parser.add_argument("--repeats", type=int, default=20, help="processes per line [20]")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    console = Console()
    for row in markdown_table(start_rows(measure_starts(options.python, options.repeats))).splitlines():
        console.print(row, soft_wrap=True)


if __name__ == "__main__":
    main()
