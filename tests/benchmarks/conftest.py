"""Made-up latencies in the form that benchmarks measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from qil_deploy.runtime_tests import BenchReport, Latency
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.runtime_tests.machine import Activity, describe_machine
from qil_deploy.runtime_tests.reports import ModelFile

Models = Mapping[str, tuple[int, Mapping[int, float]]]
MakeBench = Callable[[Models], BenchReport]


@pytest.fixture
def make_bench() -> MakeBench:
    """Return a report on `folder/NAME.onnx` from names of models, their bytes and medians in ms by threads."""

    def make(models: Models) -> BenchReport:
        counts = list(next(iter(models.values()))[1])
        latencies = [
            Latency(
                model=ModelFile(path=f"folder/{name}.onnx", bytes=size, sha256=""),
                threads=threads,
                median_ms=medians[threads],
                p95_ms=medians[threads],
                min_ms=medians[threads],
                iqr_ms=0.0,
                ratio=1.0,
                samples_ns=(),
            )
            for threads in counts
            for name, (size, medians) in models.items()
        ]
        return BenchReport(
            schema=BenchReport.SCHEMA,
            batch=1,
            repeats=7,
            warmup=1,
            seed=0,
            latencies=tuple(latencies),
            environment=describe_environment(),
            machine=describe_machine(),
            activity=Activity(cpus=(), others=None, steal=None),
        )

    return make
