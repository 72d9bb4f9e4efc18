"""Profile a model operator by operator: the events of ONNX Runtime's own profiler, added up."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests.kernel_library import KernelLibrary
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import create_session, run_session

from .pinning import pinned
from .report import OperatorTime, Profile

RUNS = 20
WARMUP = 3
_RUN, _KERNEL = "model_run", "_kernel_time"  # names of events, the second at their end


def profile_model(
    model: ModelFile,
    inputs: dict[str, NDArray[Any]],
    *,
    threads: int,
    cpus: Sequence[int] = (),
    kernels: KernelLibrary | None = None,
) -> Profile:
    """Run a model under the profiler, `WARMUP` times, then `RUNS` times.

    Args:
        model: the file.
        inputs: its inputs.
        threads: threads of ONNX Runtime.
        cpus: logical processors to pin them to, if any.
        kernels: the library that computes low-bit convolutions; None for ONNX Runtime's own kernels.

    Raises:
        ModelFileError: the model cannot be loaded or run, or the profile cannot be read.
    """
    path = Path(model.path)
    with tempfile.TemporaryDirectory() as folder, pinned(cpus):
        session = create_session(path, threads=threads, cpus=cpus, profile=Path(folder) / "profile", kernels=kernels)
        for _ in range(WARMUP + RUNS):
            run_session(session, inputs, path=path)
        try:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
            operators = aggregate(events, warmup=WARMUP)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"the profile of {path} cannot be read: {error}.") from error
    return Profile(model=model, threads=threads, runs=RUNS, operators=operators)


def aggregate(events: Sequence[dict[str, Any]], *, warmup: int) -> tuple[OperatorTime, ...]:
    """Add the times of a profile up, one entry per operator, the slowest first.

    Args:
        events: of ONNX Runtime's profiler: start and duration in microseconds of each run and each node in it.
        warmup: how many runs at the beginning are left out.

    Raises:
        ValueError: there are no more runs than that.
        KeyError: an event lacks what it should have.
    """
    starts = sorted(float(event["ts"]) for event in events if event["name"] == _RUN)
    if len(starts) <= warmup:
        raise ValueError(f"it holds {len(starts)} runs")
    nodes: dict[str, set[str]] = defaultdict(set)
    times: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(starts)))
    for event in events:
        run = int(np.searchsorted(starts, float(event["ts"]), side="right")) - 1
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL) and run >= warmup:
            operator = str(event["args"]["op_name"])
            nodes[operator].add(str(event["args"].get("node_index", event["name"])))
            times[operator][run] += float(event["dur"])
    medians = {operator: float(np.median(runs[warmup:])) for operator, runs in times.items()}
    whole = sum(medians.values()) or 1.0
    return tuple(
        OperatorTime(operator=operator, nodes=len(nodes[operator]), median_us=median, share=median / whole)
        for operator, median in sorted(medians.items(), key=lambda item: -item[1])
    )
