"""What a browser is given to verify a model, and what of its answer is believed.

The page counts what differs. Its counts are taken as they are, within their bounds; but where it claims that a tensor
has no difference, the digest of what it computed has to be that of the golden one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qil_deploy.errors import DataError
from qil_deploy.exported_names import INPUT_NAME, OUTPUT_NAME
from qil_deploy.onnx_schema import with_outputs
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.exported_model import ExportedModel, read_exported_model
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.targets.report import DeviceReport, LevelResult, TensorResult
from qil_deploy.runtime_tests.targets.run import RunOptions

from .checks import check_environment, check_word, expect, within
from .golden_chunks import GoldenChunks, open_golden
from .resources import BYTES, bytes_resource, page_resources
from .server import Resource, Service

PAGE_FILES: Mapping[str, str] = MappingProxyType(
    {"": "index.html"}
    | {name: name for name in ("page.css", "page.js", "runner.js", "runtime.js", "server.js", "sha256.js", "tally.js")}
)
_MAX_MS = 1e9


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the worker is to do, as it reads it from `job.json`.

    Attributes:
        schema: of the report it has to send.
        model, sha256: file name and digest of the model.
        input, shape: name of the model's input, and [C, H, W] of an image.
        takes_float, scale, zero_point: whether it takes (pixel - zero_point) * scale, in float32.
        fixed_batch: images that each run takes, or None for any number.
        batch, threads, levels, repeats: how to run it.
        images: how many there are.
        chunks: how many images each chunk has.
        tensors: {"name", "dtype", "shape" of one image} of the golden tensors, in order of execution.
        every_tensor: whether there are more than logits.
        autostart: whether the page begins by itself.
    """

    schema: str
    model: str
    sha256: str
    input: str
    shape: tuple[int, ...]
    takes_float: bool
    scale: float
    zero_point: int
    fixed_batch: int | None
    batch: int
    threads: int
    levels: tuple[str, ...]
    repeats: int
    images: int
    chunks: tuple[int, ...]
    tensors: tuple[dict[str, Any], ...]
    every_tensor: bool
    autostart: bool


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One job, the vectors it is about, and the files of the runtime that does it."""

    job: Job
    model: ExportedModel
    golden: GoldenChunks
    runtime: Mapping[str, Path]
    folder: Path

    def service(self) -> Service:
        """Return what a server needs for it."""
        content = self.model.path.read_bytes()
        inner = [name for name in self.golden.tensors if name != OUTPUT_NAME]
        resources = page_resources(PAGE_FILES, self.runtime)
        resources["job.json"] = bytes_resource(json.dumps(asdict(self.job), allow_nan=False).encode(), ".json")
        resources["model.onnx"] = bytes_resource(content)
        resources["model-with-outputs.onnx"] = bytes_resource(with_outputs(content, inner))
        for index in range(len(self.golden.counts)):
            resources[f"chunk-{index}"] = Resource(content_type=BYTES, read=partial(self.golden.chunk, index))
        each = 16 * self.job.images + 4096 * (len(self.golden.tensors) + 1)
        return Service(resources=resources, accept=self.accept, largest_result=2**16 + each * len(self.job.levels))

    def accept(self, content: bytes) -> DeviceReport:
        """Turn what was posted into a report.

        Raises:
            DataError: it is no report, or not one of this job.
        """
        path = self.folder / "result.json"
        path.write_bytes(content)
        try:
            report = read_report(path, DeviceReport)
        except DataError as error:
            raise DataError(str(error).replace(str(path), "what the browser sent")) from error
        try:
            self._check(report)
        except DataError as error:
            raise DataError(f"what the browser sent is no report of this run: {error}.") from error
        return report

    def _check(self, report: DeviceReport) -> None:
        job = self.job
        for name in ("model", "sha256", "images", "batch"):
            expect(name, getattr(report, name), getattr(job, name))
        expect("compared", report.compared, bool(job.tensors))
        expect("levels", tuple(level.level for level in report.levels), job.levels)
        within("threads", report.threads, 1, job.threads)
        check_environment(report.environment)
        _check_latency(report, job)
        for level in report.levels:
            self._check_level(level)

    def _check_level(self, level: LevelResult) -> None:
        where = f"level {level.level}"
        classes = len(self.model.class_names)
        expect(f"{where}, predictions", len(level.predictions), self.job.images)
        for prediction in level.predictions:
            within(f"{where}, a prediction", prediction, -1, classes - 1)
        expect(f"{where}, logits", level.logits.tensor, OUTPUT_NAME)
        names = tuple(self.golden.tensors) if self.job.every_tensor else ()
        expect(f"{where}, tensors", tuple(tensor.tensor for tensor in level.tensors), names)
        for tensor in (level.logits, *level.tensors):
            self._check_tensor(where, tensor)
        if level.logits.differing == 0:
            expected = self.golden.tensors[OUTPUT_NAME].argmax(axis=1).tolist()
            expect(f"{where}, predictions", level.predictions, tuple(expected))

    def _check_tensor(self, where: str, result: TensorResult) -> None:
        where = f"{where}, {result.tensor!r}"
        check_word(where, result.dtype)
        check_word(where, result.sha256)
        expect(f"{where}, images", result.shape[:1], (self.job.images,))
        if not all(size >= 0 for size in result.shape):
            raise DataError(f"{where} has the shape {list(result.shape)}")
        expect(f"{where}, elements", result.elements, math.prod(result.shape))
        expected = self.golden.tensors.get(result.tensor)
        if expected is None:
            expect(f"{where}, differing", (result.differing, result.largest_step, result.index), (None, None, None))
            return
        if result.differing is None or result.largest_step is None:
            raise DataError(f"{where} was not compared")
        within(f"{where}, differing", result.differing, 0, result.elements)
        within(f"{where}, largest_step", result.largest_step, 0, math.inf)
        expect(f"{where}, index", result.index is not None, result.differing > 0)
        if result.index is not None:
            _check_index(where, result.index, result.shape)
        alike = (result.dtype, result.shape) == (str(expected.dtype), expected.shape)
        if not alike:
            expect(f"{where}, differing", result.differing, result.elements)
        # Zero is equal to minus zero, whose bytes are other ones.
        elif result.differing == 0 and (expected.dtype.kind != "f" or np.all(expected)):
            expect(f"{where}, sha256", result.sha256, self.golden.digest(result.tensor))


def prepare_verification(
    model: Path, data: Path, options: RunOptions, runtime: Mapping[str, Path], folder: Path, *, autostart: bool
) -> Verification:
    """Make ready what a browser needs to verify a model.

    Args:
        model: the ONNX file.
        data: golden vectors (.npz) or uint8 images (.npy).
        options: how to run it.
        runtime: files of ONNX Runtime Web by the names that the page asks for.
        folder: for temporary files; has to stay as long as the result is used.
        autostart: whether the page begins by itself.

    Raises:
        ModelFileError: the model cannot be read.
        DataError: the data cannot be read, or are not of this model.
    """
    exported = read_exported_model(model)
    batch = exported.batch or options.batch
    golden = open_golden(data, exported, batch, folder)
    pixels = exported.preprocessing
    job = Job(
        schema=DeviceReport.SCHEMA,
        model=model.name,
        sha256=ModelFile.of(model).sha256,
        input=INPUT_NAME,
        shape=pixels.shape,
        takes_float=exported.input == "float",
        scale=pixels.scale,
        zero_point=pixels.zero_point,
        fixed_batch=exported.batch,
        batch=batch,
        threads=options.threads,
        levels=options.levels,
        repeats=options.repeats,
        images=len(golden.images),
        chunks=golden.counts,
        tensors=tuple(
            {"name": name, "dtype": str(tensor.dtype), "shape": tensor.shape[1:]}
            for name, tensor in golden.tensors.items()
        ),
        every_tensor=any(name != OUTPUT_NAME for name in golden.tensors),
        autostart=autostart,
    )
    return Verification(job=job, model=exported, golden=golden, runtime=runtime, folder=folder)


def _check_index(where: str, index: tuple[int, ...], shape: tuple[int, ...]) -> None:
    expect(f"{where}, axes of index", len(index), len(shape))
    for position, size in zip(index, shape, strict=True):
        within(f"{where}, index", position, 0, size - 1)


def _check_latency(report: DeviceReport, job: Job) -> None:
    latency = report.latency
    expect("latency", latency is not None, job.repeats > 0)
    if latency is not None:
        expect("latency, runs", latency.runs, job.repeats)
        expect("latency, images", latency.images, job.fixed_batch or 1)
        within("latency, median_ms", latency.median_ms, 0, _MAX_MS)
        within("latency, p95_ms", latency.p95_ms, latency.median_ms, _MAX_MS)
