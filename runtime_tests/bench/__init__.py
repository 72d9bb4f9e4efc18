"""Latency of an inference, with its uncertainty, and the other costs of a model.

`benchmark` measures ONNX files on this machine. `statistics.bench_report` makes the same report of samples that were
taken elsewhere, such as in a browser.
"""

from .options import BenchOptions
from .report import BenchReport, Latency
from .rounds import Clock
from .run import benchmark

__all__ = ["BenchOptions", "BenchReport", "Clock", "Latency", "benchmark"]
