"""Measure the memory that `export_onnx` takes in addition to the model: at most twice the size of the float weights.

    python benchmarks/export_memory.py vgg16 [--size 224]

Each form of file is exported in a separate process, from a torchvision network with random weights, calibrated on one
image. Only the export is measured: the peak resident memory while `export_onnx` runs, minus the memory that the process
held before, which includes imports, the model and a first small export (which triggers one-time loading). Linux only.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torchvision
import typer
from rich.console import Console
from torch import fx, nn

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.export import ExportOptions, export_onnx
from tables import Rows, console_table

GOAL = 2.0
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORMS = {
    "prepared, qlinear": (False, ExportOptions()),
    "frozen, qlinear": (True, ExportOptions()),
    "frozen, qlinear, int8 storage": (True, ExportOptions(weights="int8")),
    "frozen, qdq": (True, ExportOptions(format="qdq")),
    "frozen, qdq, int8 storage": (True, ExportOptions(format="qdq", weights="int8")),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """Cost of one export, in bytes and seconds.

    Attributes:
        weights: size of the network's float32 parameters.
        before: resident memory when the export began.
        peak: peak resident memory while it ran.
        seconds: wall time.
    """

    weights: int
    before: int
    peak: int
    seconds: float

    @property
    def multiple(self) -> float:
        """Memory used in addition to the model, as a multiple of the float weights."""
        return (self.peak - self.before) / self.weights


def can_measure() -> bool:
    """Whether the kernel can report the peak memory of a part of a process's lifetime."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return STATUS.is_file() and "VmHWM" in STATUS.read_text()


def measure(network: str, size: int, form: str) -> Step:
    """Export in a separate process."""
    command = [sys.executable, __file__, network, "--size", str(size), "--only", form]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own file
    return Step(**json.loads(finished.stdout))


def measure_here(network: str, size: int, form: str) -> Step:
    """Export in this process, which has exported nothing of this size before."""
    is_frozen, options = FORMS[form]
    with tempfile.TemporaryDirectory() as folder:
        warm_up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        _export(*_model(warm_up, 8, is_frozen=is_frozen), Path(folder), options)
        float_network = torchvision.models.get_model(network, weights=None, num_classes=1000)
        weights = 4 * sum(parameter.numel() for parameter in float_network.parameters())
        model = _model(float_network, size, is_frozen=is_frozen)
        del float_network
        gc.collect()
        before, start = _status("VmRSS"), time.perf_counter()
        CLEAR.write_text("5")  # resets the peak
        _export(*model, Path(folder), options)
        return Step(weights=weights, before=before, peak=_status("VmHWM"), seconds=time.perf_counter() - start)


def _model(network: nn.Module, size: int, *, is_frozen: bool) -> tuple[fx.GraphModule, Preprocessing]:
    torch.manual_seed(0)
    pixels = Preprocessing.from_statistics((3, size, size), mean=0.45, std=0.226)
    images = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), np.uint8)
    x = torch.from_numpy(pixels.normalize(images))
    model = prepare(network.eval(), QuantConfig(), x, input_grid=pixels)
    calibrate(model, [x])
    return (freeze(model) if is_frozen else model), pixels


def _export(model: fx.GraphModule, pixels: Preprocessing, folder: Path, options: ExportOptions) -> None:
    with torch.no_grad():
        classes = model.eval()(torch.zeros(1, *pixels.shape)).shape[1]
    names = [f"class {index}" for index in range(classes)]
    export_onnx(model, folder / "model.onnx", preprocessing=pixels, class_names=names, options=options)


def _status(name: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def rows_of(network: str, steps: dict[str, Step]) -> Rows:
    """Return one row per form."""
    cells = [
        [
            f"{network}: {form}",
            f"{step.weights / 2**20:,.0f} MiB",
            f"{(step.peak - step.before) / 2**20:,.0f} MiB",
            f"{step.multiple:.2f}",
            f"{step.seconds:.1f} s",
            "met" if step.multiple <= GOAL else "MISSED",
        ]
        for form, step in steps.items()
    ]
    headings = ("export", "float weights", "taken", "multiple", "time", f"at most {GOAL:g} times")
    return Rows(headings=headings, cells=cells)


def main(
    network: Annotated[str, typer.Argument(help="Name of a torchvision network.")],
    size: Annotated[int, typer.Option(help="Rows and columns of the images.")] = 224,
    only: Annotated[str | None, typer.Option(help="Measure one form in this process, and print it as JSON.")] = None,
) -> None:
    """Measure the memory that exporting a network takes."""
    if only is not None:
        sys.stdout.write(json.dumps(asdict(measure_here(network, size, only))))
        return
    steps = {form: measure(network, size, form) for form in FORMS}
    Console().print(console_table("memory of an export beside the model", rows_of(network, steps)))


if __name__ == "__main__":
    typer.run(main)
