"""Load and run a model once in a process of its own, to measure time and memory, and to see whether it runs at all.

A model that crashes ONNX Runtime, never comes back or takes more memory than the file and its input account for does so
here, where it can be stopped.

    python -P -m qil_deploy.runtime_tests.bench.trial RESULT.json [MODEL.onnx THREADS BATCH SEED [LIBRARY SET]]

is that process. Without a model it only loads ONNX Runtime.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qil_deploy.errors import ModelFileError, QilDeployError
from qil_deploy.runtime_tests.child_process import Ended, run_apart
from qil_deploy.runtime_tests.kernel_library import KernelLibrary
from qil_deploy.runtime_tests.memory_limit import is_out_of_memory, limit_memory
from qil_deploy.runtime_tests.sessions import create_session, run_session
from qil_deploy.untrusted_text import one_line

from .inputs import random_inputs

_MODULE = "qil_deploy.runtime_tests.bench.trial"
_MILLISECOND = 1e6
# Bytes that a process may take beyond what Python takes: at least, for each byte of the file, and of the input.
_LEAST_MEMORY = 2**30
_MEMORY_PER_BYTE = 8
_MEMORY_PER_INPUT_BYTE = 64


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Costs of a model in processes of its own, medians over them; times are `None` if no model was loaded."""

    load_ms: float | None
    first_run_ms: float | None
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Options for trying a model.

    Attributes:
        threads, batch, seed: as in `run.BenchOptions`.
        processes: how many to start, one after the other.
        timeout: seconds that each may take.
        kernels: the library that computes low-bit convolutions; None for ONNX Runtime's own kernels.
    """

    threads: int
    batch: int
    seed: int
    processes: int
    timeout: float
    kernels: KernelLibrary | None = None


def try_model(path: Path, options: TrialOptions) -> Trial:
    """Load and run a model once in each of several processes.

    Raises:
        ModelFileError: it cannot be loaded or run, crashes, or takes too long.
    """
    arguments = [str(path), str(options.threads), str(options.batch), str(options.seed)]
    if options.kernels is not None:
        arguments += [str(options.kernels.path), options.kernels.kernel_set]
    trials = [_try_once(arguments, path, options.timeout) for _ in range(options.processes)]
    return Trial(
        load_ms=statistics.median(result["load_ns"] for result, _ in trials) / _MILLISECOND,
        first_run_ms=statistics.median(result["first_run_ns"] for result, _ in trials) / _MILLISECOND,
        peak_bytes=int(statistics.median(peak for _, peak in trials)),
    )


def try_runtime(timeout: float) -> int:
    """Return the peak memory in bytes of a process that loads ONNX Runtime and no model.

    Raises:
        ModelFileError: it takes too long.
    """
    return _try_once([], Path("ONNX Runtime"), timeout)[1]


def _try_once(arguments: list[str], path: Path, timeout: float) -> tuple[dict[str, int], int]:
    """Return the process's output, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        try:
            ended = run_apart(_command(output, arguments), timeout=timeout)
        except TimeoutError as error:
            raise ModelFileError(
                f"{path} was not loaded and run once within {timeout:g} seconds, and was stopped; give it longer "
                "with --timeout."
            ) from error
        except OSError as error:
            raise ModelFileError(f"{path} cannot be tried in a process of its own: {error}") from error
        if ended.exit_code != 0:
            raise ModelFileError(_reason(path, ended))
        return json.loads(output.read_text()), ended.peak_bytes


def _command(output: Path, arguments: list[str]) -> list[str]:
    return [sys.executable, "-P", "-m", _MODULE, str(output), *arguments]


def _reason(path: Path, ended: Ended) -> str:
    """Explain why a process failed: its own sentence, or the cause of its end."""
    if ended.exit_code == 2 and ended.last_words:
        return one_line(ended.last_words)
    if ended.signal is not None:
        return (
            f"{path} crashed the process that tried to load and run it ({ended.signal}); it may be damaged, or too "
            "large."
        )
    said = f": {one_line(ended.last_words, 400)}" if ended.last_words else ""
    return f"the process that tried to load and run {path} failed with exit code {ended.exit_code}{said}."


def main(arguments: Sequence[str]) -> int:
    """Try a model, as the main function of the process; return its exit code."""
    output, *rest = arguments
    result: dict[str, int] = {}
    if rest:
        path, (threads, batch, seed) = Path(rest[0]), map(int, rest[1:4])
        kernels = KernelLibrary(path=Path(rest[4]), kernel_set=rest[5]) if len(rest) > 4 else None
        try:
            result = _load_and_run(path, threads, batch, seed, kernels)
        except (QilDeployError, MemoryError) as error:
            sentence = " ".join(str(error).split())
            if isinstance(error, MemoryError) or is_out_of_memory(sentence):
                sentence = f"{path} takes more memory than a file and an input of their sizes may."
            sys.stderr.write(f"{one_line(sentence)}\n")
            return 2
    Path(output).write_text(json.dumps(result))
    return 0


def _load_and_run(path: Path, threads: int, batch: int, seed: int, kernels: KernelLibrary | None) -> dict[str, int]:
    allowed = _LEAST_MEMORY + _MEMORY_PER_BYTE * path.stat().st_size
    limit_memory(allowed)
    start = time.perf_counter_ns()
    session = create_session(path, threads=threads, kernels=kernels)
    loaded = time.perf_counter_ns()
    inputs = random_inputs(session, batch=batch, seed=seed, path=path)
    limit_memory(allowed + _MEMORY_PER_INPUT_BYTE * sum(value.nbytes for value in inputs.values()))
    before = time.perf_counter_ns()
    run_session(session, inputs, path=path)
    return {"load_ns": loaded - start, "first_run_ns": time.perf_counter_ns() - before}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
