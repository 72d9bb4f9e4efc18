"""Measure this processor's peak throughput of multiplications: large matrix products in ONNX Runtime itself.

Matrix products are what convolutions become, and large ones hide everything else. A network that reaches 60 % of this
peak spends 40 % of its time on anything but multiplying at full speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.onnx_io import parse_model
from qil_deploy.reference import FLOAT32, INT8
from qil_deploy.runtime_tests.sessions import session_options

from .pinning import pinned
from .report import Peak

# Rows, length of a row, columns: from what fits a second-level cache to some megabytes.
SIZES = ((128, 512, 512), (256, 1024, 1024), (384, 4096, 512))
RUNS = 20
_WARMUP = 3
# arithmetic: operator, its element types by number in ONNX, and the types of the matrices
_OPERATORS = {
    INT8: ("MatMulInteger", (2, 3, 6), np.uint8, np.int8),
    FLOAT32: ("MatMul", (1, 1, 1), np.float32, np.float32),
}


def measure_peak(arithmetic: str, threads: int, cpus: Sequence[int], clock: Callable[[], int]) -> Peak:
    """Return the largest throughput of any run of any size in `SIZES`.

    Args:
        arithmetic: `INT8` or `FLOAT32`.
        threads: threads of ONNX Runtime.
        cpus: logical processors to pin them to, if any.
        clock: returns nanoseconds.
    """
    generator = np.random.default_rng(0)
    operator, _, left, right = _OPERATORS[arithmetic]
    found = []
    for rows, length, columns in SIZES:
        a = generator.integers(0, 16, (rows, length)).astype(left)
        b = generator.integers(-8, 8, (length, columns)).astype(right)
        session = onnxruntime.InferenceSession(
            product_model(arithmetic, a, b),
            session_options(threads=threads, cpus=cpus),
            providers=["CPUExecutionProvider"],
        )
        shortest = _shortest_run(session, a, cpus, clock)
        if shortest > 0:  # else the clock is too coarse for this size
            name = f"{operator} {rows}x{length} by {length}x{columns}"
            found.append(Peak(arithmetic=arithmetic, threads=threads, gmacs=a.size * columns / shortest, operator=name))
    return max(found, key=lambda peak: peak.gmacs)


def _shortest_run(
    session: onnxruntime.InferenceSession, a: NDArray[np.generic], cpus: Sequence[int], clock: Callable[[], int]
) -> int:
    """Return the nanoseconds of the fastest of `RUNS` runs: the processor's speed without interference by others."""
    durations = []
    with pinned(cpus):
        for _ in range(_WARMUP + RUNS):
            start = clock()
            session.run(None, {"a": a})
            durations.append(clock() - start)
    return min(durations[_WARMUP:])


def product_model(arithmetic: str, a: NDArray[np.generic], b: NDArray[np.generic]) -> bytes:
    """Return an ONNX model of one operator, which multiplies its input, shaped like `a`, with the constant `b`."""
    operator, types, _, _ = _OPERATORS[arithmetic]
    model = parse_model(b"")
    model.ir_version = 8
    model.opset_import.add(version=17)
    graph = model.graph
    graph.name = "peak"
    graph.node.add(op_type=operator, input=["a", "b"], output=["y"])
    graph.initializer.add(name="b", data_type=types[1], dims=b.shape, raw_data=b.tobytes())
    for info, name, element, shape in ((graph.input, "a", types[0], a.shape), (graph.output, "y", types[2], None)):
        tensor = info.add(name=name).type.tensor_type
        tensor.elem_type = element
        for size in shape or (a.shape[0], b.shape[1]):
            tensor.shape.dim.add(dim_value=size)
    return bytes(model.SerializeToString())
