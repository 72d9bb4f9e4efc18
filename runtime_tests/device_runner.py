"""Run an exported model on a device and compare it with golden vectors, tensor by tensor.

This is the program of every target that runs Python. With what it imports of the package, and needing only Python,
numpy and onnxruntime, it travels as one zip file (`device_program`):

    python qil_device.pyz MODEL.onnx GOLDEN.npz > report.json

At each optimization level the golden images go through the file as it is, and once more with every tensor as an output,
since a tensor that is an output may keep the optimizer from fusing. Images alone (`.npy`, uint8 [N, C, H, W]) give
digests and classes, with nothing to compare. `device_report` says what the report holds; progress goes to standard
error.

Exit codes: 0 all equal (or nothing to compare), 1 something differs, 2 it could not be run.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.accuracy import predicted_classes
from qil_deploy.errors import ModelFileError, QilDeployError
from qil_deploy.onnx_io import KERNEL_OPERATORS, with_outputs
from qil_deploy.reports import report_text
from qil_deploy.untrusted_text import one_line

from .compare_tensors import TensorDifference, compare_tensors, digest_bytes
from .device_report import DeviceLatency, DeviceReport, LevelResult, TensorResult
from .environment import describe_device
from .exported_model import ExportedModel, inspect_exported_model
from .golden_file import GoldenVectors, read_vectors
from .kernel_library import KernelLibrary, find_kernel_library
from .reports import ModelFile
from .sessions import OPTIMIZATION_LEVELS, create_session

_WARMUP = 3


class TensorCount:
    """Digest of one tensor, and its differences from the golden one, batch by batch.

    Args:
        name: of the tensor.
        expected: the golden one [N, ...], if there is one.
    """

    def __init__(self, name: str, expected: NDArray[Any] | None) -> None:
        self.name = name
        self._expected = expected
        self._digest = hashlib.sha256()
        self._found: list[TensorDifference] = []
        self._index: tuple[int, ...] | None = None
        self._dtype = ""
        self._shape: tuple[int, ...] = ()
        self._images = 0

    def add(self, found: NDArray[Any]) -> None:
        """Count the tensor of the next images, [n, ...]."""
        end = self._images + len(found)
        expected = found if self._expected is None else self._expected[self._images : end]
        difference = compare_tensors(found, expected, range(self._images, end))
        if self._index is None and difference.differing:
            self._index = next(iter(difference.indices), (self._images, *[0] * (expected.ndim - 1)))
        self._found.append(difference)
        self._digest.update(digest_bytes(found))
        self._dtype, self._shape, self._images = str(found.dtype), found.shape[1:], end

    def result(self) -> TensorResult:
        """Return the tensor's entry of the report."""
        whole, compared = reduce(add, self._found), self._expected is not None
        return TensorResult(
            tensor=self.name,
            dtype=self._dtype,
            shape=(self._images, *self._shape),
            sha256=self._digest.hexdigest(),
            elements=whole.elements,
            differing=whole.differing if compared else None,
            largest_step=whole.largest_step if compared else None,
            index=self._index if compared else None,
        )


def run_device(options: argparse.Namespace) -> DeviceReport:
    """Run a model as specified on the command line.

    Raises:
        ModelFileError: it cannot be loaded or run.
        DataError: the golden vectors or images are missing, damaged, or not of this model.
    """
    model = inspect_exported_model(options.model)
    batch = model.batch or options.batch
    library = None if options.kernels is None else find_kernel_library(options.kernels)
    with tempfile.TemporaryDirectory() as folder:
        golden = read_vectors(options.data, model, Path(folder), images_alone=True)
        levels = tuple(_run_level(model, level, golden, batch, options.threads, library) for level in options.levels)
        latency = _measure(model, np.array(golden.images[:1]), options.repeats, options.threads, library)
    return DeviceReport(
        schema=DeviceReport.SCHEMA,
        model=model.path.name,
        sha256=ModelFile.of(model.path).sha256,
        images=len(golden.images),
        compared=bool(golden.tensors),
        threads=options.threads,
        batch=batch,
        levels=levels,
        latency=latency,
        environment=describe_device(options.cpu),
        kernels=() if library is None else _choices(library),
    )


def _choices(library: KernelLibrary) -> tuple[str, ...]:
    return tuple(f"{operator}: {choice}" for operator, choice in library.choices_for(KERNEL_OPERATORS).items())


def _run_level(
    model: ExportedModel, level: str, golden: GoldenVectors, batch: int, threads: int, kernels: KernelLibrary | None
) -> LevelResult:
    """Run all images at one optimization level, unmodified and with every golden tensor as an output."""
    outputs = [TensorCount(name, golden.tensors.get(name)) for name in model.output_names]
    predictions: list[int] = []
    session = create_session(model.path, threads=threads, level=level, kernels=kernels)
    for tensors in _run_batches(model, session, golden.images, batch, level):
        for output in outputs:
            output.add(tensors[output.name])
        if model.has_classes:
            predictions += predicted_classes(tensors[model.outputs[0].name]).tolist()
    inner = [name for name in golden.tensors if name not in model.output_names]
    counts = [TensorCount(name, expected) for name, expected in golden.tensors.items()] if inner else []
    if inner:
        content = with_outputs(model.path.read_bytes(), inner)
        session = create_session(model.path, threads=threads, level=level, content=content, kernels=kernels)
        for tensors in _run_batches(model, session, golden.images, batch, f"{level}, every tensor"):
            for count in counts:
                count.add(tensors[count.name])
    return LevelResult(
        level=level,
        predictions=tuple(predictions),
        logits=outputs[0].result(),
        tensors=tuple(count.result() for count in counts),
        others=tuple(output.result() for output in outputs[1:]),
    )


def _run_batches(
    model: ExportedModel, session: onnxruntime.InferenceSession, images: NDArray[np.uint8], batch: int, what: str
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield a session's outputs for one batch of images after another, and report progress."""
    ranks = {output.name: 1 + len(output.shape) for output in model.outputs}
    for start in range(0, len(images), batch):
        some = np.array(images[start : start + batch])
        tensors = model.run(session, some)
        for name, tensor in tensors.items():
            is_empty = name in ranks and (tensor.ndim != ranks[name] or tensor.size == 0)
            if tensor.shape[:1] != (len(some),) or is_empty:
                raise ModelFileError(
                    f"{model.path} returns {name} of shape {list(tensor.shape)} for {len(some)} images; one row or "
                    "map for each is needed."
                )
        yield tensors
        sys.stderr.write(f"progress: {what}: {start + len(some)} of {len(images)} images\n")
        sys.stderr.flush()


def _measure(
    model: ExportedModel, image: NDArray[np.uint8], repeats: int, threads: int, kernels: KernelLibrary | None
) -> DeviceLatency | None:
    """Time single runs of the unmodified file at the default level."""
    if repeats == 0:
        return None
    predict = model.onnx_runner(threads=threads, kernels=kernels)
    times = []
    for _ in range(_WARMUP + repeats):
        start = time.perf_counter()
        predict(image)
        times.append(1000 * (time.perf_counter() - start))
    median, p95 = np.percentile(times[_WARMUP:], [50, 95])
    return DeviceLatency(runs=repeats, images=model.batch or 1, median_ms=float(median), p95_ms=float(p95))


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run an exported model and compare it with its golden vectors.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("data", type=Path, metavar="GOLDEN.npz", help="golden vectors, or uint8 images (.npy)")
    known = ", ".join(OPTIMIZATION_LEVELS)
    parser.add_argument("--levels", default="all", help=f"of optimization, by commas: {known} [all]")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime [1]")
    parser.add_argument("--batch", type=int, default=1, help="images per run [1]")
    parser.add_argument("--repeats", type=int, default=20, help="runs to time; 0 for none [20]")
    parser.add_argument("--cpu", help="name of the processor, where the system names another one, as in an emulator")
    parser.add_argument("--kernels", metavar="FILE", help="a library of kernels that every session registers")
    options = parser.parse_args(arguments)
    options.levels = options.levels.split(",")
    unknown = [level for level in options.levels if level not in OPTIMIZATION_LEVELS]
    if unknown:
        parser.error(f"--levels names {', '.join(unknown)}; known are {known}")
    if options.threads < 1 or options.batch < 1 or options.repeats < 0:
        parser.error("--threads and --batch must be at least 1, --repeats at least 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run a model and write the report to the standard output stream; return the exit code."""
    options = _parse_arguments(arguments)
    try:
        report = run_device(options)
    except QilDeployError as error:
        sys.stderr.write(f"Error: {one_line(str(error))}\n")
        return 2
    sys.stdout.write(report_text(report, indent=None))
    return int(report.differing > 0)


if __name__ == "__main__":
    sys.exit(main())
