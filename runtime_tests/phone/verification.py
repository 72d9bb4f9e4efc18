"""Prepare a verification in a browser, and validate its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qil_deploy.errors import DataError
from qil_deploy.onnx_io import INPUT_NAME, with_outputs
from qil_deploy.runtime_tests.exported_model import ExportedModel, read_exported_model
from qil_deploy.runtime_tests.golden_chunks import GoldenChunks, open_golden
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.targets.check_report import check_report, largest_report
from qil_deploy.runtime_tests.targets.options import RunOptions
from qil_deploy.runtime_tests.targets.report import DeviceReport

from .pictures import pictures_in_job
from .read_result import read_result
from .server import Service, page_resources

ELEMENTS = ("uint8", "int8", "int32", "float32")
"""Types of elements that the page knows."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One job, its vectors, and the runtime's files; `job.json` describes the job."""

    job: dict[str, Any]
    options: RunOptions
    model: ExportedModel
    golden: GoldenChunks
    runtime: Mapping[str, Path]

    def service(self) -> Service:
        """Return the service for the server."""
        content = self.model.path.read_bytes()
        resources = page_resources("index.html", self.runtime)
        resources["job.json"] = json.dumps(self.job, allow_nan=False).encode()
        resources["model.onnx"] = content
        resources["model-with-outputs.onnx"] = with_outputs(content, self.golden.inner)
        for index in range(len(self.golden.counts)):
            resources[f"chunk-{index}"] = partial(self.golden.chunk, index)
        most = largest_report(self.golden, self.options)
        return Service(resources=resources, accept=self.accept, largest_result=most)

    def accept(self, content: bytes) -> DeviceReport:
        """Convert a posted result to a report.

        Raises:
            DataError: it is no report, or not one of this job.
        """
        return read_result(content, DeviceReport, self._check, "no report of this run")

    def _check(self, report: DeviceReport) -> None:
        check_report(report, self.model, self.golden, self.options, browser=True)


def prepare_verification(
    model: Path, data: Path, options: RunOptions, runtime: Mapping[str, Path], folder: Path, *, autostart: bool
) -> Verification:
    """Prepare a browser's verification of a model.

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
    for name, tensor in golden.tensors.items():
        if str(tensor.dtype) not in ELEMENTS:
            raise DataError(f"{data} has {name!r} as {tensor.dtype}; a browser compares {', '.join(ELEMENTS)}.")
    job = {
        "schema": DeviceReport.SCHEMA,  # of the report that the worker has to send
        "model": model.name,
        "sha256": ModelFile.of(model).sha256,
        "input": INPUT_NAME,
        "shape": exported.preprocessing.shape,  # [C, H, W] of an image
        "takes_float": exported.input == "float",  # (pixel - shift) * factor of its channel, in float32
        "shift": exported.preprocessing.shift.tolist(),
        "factor": exported.preprocessing.factor.tolist(),
        "fixed_batch": exported.batch,  # images that each run takes, or None for any number
        "batch": batch,
        "threads": options.threads,
        "levels": options.levels,
        "repeats": options.repeats,
        "images": len(golden.images),
        "chunks": golden.counts,  # how many images each chunk has
        "tensors": [  # golden ones, in order of execution, each with the shape of one image
            {"name": name, "dtype": str(tensor.dtype), "shape": tensor.shape[1:]}
            for name, tensor in golden.tensors.items()
        ],
        "outputs": exported.output_names,
        "has_classes": exported.has_classes,  # the first output is a row of logits
        "pictures": pictures_in_job(exported),  # what is drawn on the first images, or None
        "every_tensor": bool(golden.inner),  # more than the outputs
        "autostart": autostart,  # the page begins by itself
    }
    return Verification(job=job, options=options, model=exported, golden=golden, runtime=runtime)
