"""Compare the classes that OpenVINO and ONNX Runtime predict: the zoo's networks on all Fashion-MNIST test images.

    python benchmarks/openvino_agreement.py --out runs/benchmarks

Every frozen checkpoint of the zoo is exported as `qdq` with int8 storage, which OpenVINO runs in integer kernels, and
both runtimes classify the same images. OpenVINO rounds differently, so logits differ; the comparison uses top-1. The
script writes `OUT/openvino/*.onnx` and the report `OUT/openvino.json`. Requires OpenVINO: pip install
'qil-deploy[bench]'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import typer
from numpy.typing import NDArray
from torch import fx

from qil_deploy.checkpoint import load_model
from qil_deploy.datasets import load_images
from qil_deploy.errors import CheckpointError
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.files import ensure_writable
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.runtime_tests.exported_model import ExportedModel, read_exported_model
from qil_deploy.terminal import Console
from qil_deploy.training.models import build_model
from tables import Rows, console_table, describe

ZOO = Path(__file__).parents[1] / "zoo" / "fashion_mnist"
GOAL = 0.995
BATCH_SIZE = 500


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of both runtimes on the classes predicted by one model.

    Attributes:
        model: name of the checkpoint.
        images: number of classified images.
        differing: number of predictions that differ.
        onnxruntime_accuracy, openvino_accuracy: top-1, 0 to 1.
    """

    model: str
    images: int
    differing: int
    onnxruntime_accuracy: float
    openvino_accuracy: float

    @property
    def share(self) -> float:
        """Share of the images with the same class, 0 to 1."""
        return 1 - self.differing / self.images


@dataclass(frozen=True, kw_only=True)
class OpenvinoReport:
    """Results for the whole zoo."""

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.openvino/1"

    schema: str
    openvino: str
    agreements: tuple[Agreement, ...]
    environment: Environment


def main(
    out: Annotated[Path, typer.Option(help="Folder for the models and the report.")] = Path("runs/benchmarks"),
    images: Annotated[int, typer.Option(help="Number of test images, from the first on.")] = 10_000,
) -> None:
    """Compare OpenVINO's top-1 with ONNX Runtime's."""
    console = Console()
    try:
        import openvino
    except ImportError:
        console.print("Skipped: OpenVINO is not installed; pip install 'qil-deploy[bench]'.")
        return
    report_path = out / "openvino.json"
    ensure_writable(report_path)
    agreements = []
    for checkpoint in sorted(ZOO.glob("*_frozen.safetensors")):
        console.print(f"Comparing {checkpoint.stem} ...")
        model = export_int8_qdq(checkpoint, out / "openvino" / f"{checkpoint.stem}.onnx")
        agreements.append(compare(model, checkpoint.stem, images))
    report = OpenvinoReport(
        schema=OpenvinoReport.SCHEMA,
        openvino=str(openvino.__version__),
        agreements=tuple(agreements),
        environment=describe_environment(),
    )
    write_report(report_path, report)
    console.print(console_table(environment_line(report), agreement_rows(report)))


def export_int8_qdq(checkpoint: Path, path: Path) -> ExportedModel:
    """Export a frozen checkpoint as `qdq` with int8 storage.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds a float network.
    """
    info, model = load_model(checkpoint, build_model)
    if not isinstance(model, fx.GraphModule):
        raise CheckpointError(f"checkpoint {checkpoint} contains a float network; pass a frozen one.")
    options = ExportOptions(format="qdq", weights="int8")
    export_onnx(
        model,
        path,
        preprocessing=info.preprocessing,
        class_names=info.class_names,
        data=info.data,
        options=options,
    )
    return read_exported_model(path)


def compare(model: ExportedModel, name: str, count: int) -> Agreement:
    """Classify the first `count` test images of the model's data set in both runtimes."""
    images = load_images(model.data or "", "test", shape=model.preprocessing.shape).first(count)
    in_onnxruntime = classify(model.onnx_predictor(), images.images)
    in_openvino = classify(openvino_predictor(model), images.images)
    return Agreement(
        model=name,
        images=len(images),
        differing=int(np.count_nonzero(in_onnxruntime != in_openvino)),
        onnxruntime_accuracy=float(np.mean(in_onnxruntime == images.labels)),
        openvino_accuracy=float(np.mean(in_openvino == images.labels)),
    )


Classifier = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""A function from uint8 images to logits [N, classes]."""


def openvino_predictor(model: ExportedModel) -> Classifier:
    """Return a function from uint8 images to logits that runs a model in OpenVINO, with its default options.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    compiled = openvino.Core().compile_model(str(model.path), "CPU")

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled([model.prepare_input(images)])[0]
        return logits

    return predict


def classify(predict: Classifier, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class of each image: the position of its largest logit."""
    starts = range(0, len(images), BATCH_SIZE)
    return np.concatenate([predict(images[start : start + BATCH_SIZE]).argmax(1) for start in starts])


def agreement_rows(report: OpenvinoReport) -> Rows:
    """Return one row per model: same classes, differing ones, and each runtime's accuracy."""
    cells = [
        [
            agreement.model,
            f"{100 * agreement.share:.2f} %",
            f"{agreement.differing} of {agreement.images:,}",
            f"{100 * agreement.onnxruntime_accuracy:.2f} %",
            f"{100 * agreement.openvino_accuracy:.2f} %",
            "met" if agreement.share >= GOAL else "MISSED",
        ]
        for agreement in report.agreements
    ]
    headings = (
        "model",
        "same class",
        "differing",
        "accuracy in ONNX Runtime",
        "in OpenVINO",
        f"goal: {100 * GOAL:g} %",
    )
    return Rows(headings=headings, cells=cells)


def environment_line(report: OpenvinoReport) -> str:
    """Return a line on the machine and the OpenVINO version."""
    return f"{describe(report.environment)}, openvino {report.openvino}"


if __name__ == "__main__":
    typer.run(main)
