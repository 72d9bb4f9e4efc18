"""Trust and speed of an exported model: `verify` compares every logit, `benchmark` measures latency.

Needs numpy and onnxruntime, neither torch nor onnx.
"""

from qil_deploy.reports import read_report, write_report

from .bench import BenchOptions, BenchReport, Latency, benchmark
from .differences import Comparison, Difference
from .logit_counts import BackendResult
from .verify import VerifyReport, verify

__all__ = [
    "BackendResult",
    "BenchOptions",
    "BenchReport",
    "Comparison",
    "Difference",
    "Latency",
    "VerifyReport",
    "benchmark",
    "read_report",
    "verify",
    "write_report",
]
