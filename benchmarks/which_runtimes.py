"""Find out which runtime releases load each form of file, and how many logits differ from the integer reference.

    python benchmarks/which_runtimes.py --page docs/what-runs-where.md

Every release gets its own environment under OUT, installed with pip, in which a short program loads each file and runs
it with the runtime's default options on the same 16 images. ResNet-20 comes from the zoo; `linear` is a small random
network with a linear layer large enough to become MatMulNBits, if the form allows that. The script writes the files,
`OUT/runtimes.json`, and the table between `<!-- runtimes -->` and `<!-- end -->` on the page. The releases that can be
tried depend on the Python version: wheels for 3.11 begin with ONNX Runtime 1.15.
"""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from torch import nn

from qil_deploy import Preprocessing, QuantConfig, calibrate, load_model, prepare
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.files import write_text
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.terminal import Console
from qil_deploy.training.models import build_model
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

ZOO = Path(__file__).parents[1] / "zoo" / "fashion_mnist"
RELEASES = (
    *("onnxruntime==1.15.1", "onnxruntime==1.17.3", "onnxruntime==1.22.1", "onnxruntime==1.23.2"),
    *("onnxruntime==1.24.1", "onnxruntime==1.32.0", "openvino==2026.4.1"),
)
FORMATS: tuple[Literal["qlinear", "qdq"], ...] = ("qlinear", "qdq")
STORAGES: tuple[Literal["packed", "int8"], ...] = ("packed", "int8")
IMAGES = 16

# Program run in the environment of a release, on MODEL.onnx with the images and logits of MODEL.npz.
RUN = """
import json, sys
import numpy as np
library, *models = sys.argv[1:]
if library == "onnxruntime":
    import onnxruntime
    onnxruntime.set_default_logger_severity(4)
    run = lambda path, images: onnxruntime.InferenceSession(path).run(None, {"image": images})[0]
else:
    import openvino
    run = lambda path, images: openvino.Core().compile_model(path, "CPU")([images])[0]
found = {}
for path in models:
    known = np.load(path.replace(".onnx", ".npz"))
    try:
        logits = run(path, known["images"])
        differing = int(np.count_nonzero(logits != known["logits"]))
        classes = int(np.count_nonzero(logits.argmax(1) != known["logits"].argmax(1)))
        found[path] = f"{differing}" + (f" ({classes} classes)" if classes else "")
    except Exception:
        found[path] = "refused"
print(json.dumps(found))
"""


def main(
    releases: Annotated[list[str] | None, typer.Argument(help="Releases, as pip requirements.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for environments, files and the report.")] = Path("runs/runtimes"),
    page: Annotated[Path | None, typer.Option(help="Page whose table is replaced.")] = None,
) -> None:
    """Try every form of file in every release."""
    models = dict(write_models(out / "models"))
    found = {release: try_release(release, out / "environments", models) for release in releases or RELEASES}
    write_text(out / "runtimes.json", json.dumps(found, indent=1) + "\n")
    rows = Rows(
        headings=("file", *(release.replace("onnxruntime==", "").replace("==", " ") for release in found)),
        cells=[[name, *(found[release][name] for release in found)] for name in models],
    )
    Console().print(console_table("Logits of 160 that differ from the integer reference", rows))
    if page is not None:
        write_text(page, with_tables(page.read_text(), {"runtimes": "\n" + markdown_table(rows) + "\n\n"}))


def write_models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every form of each network with its images and logits, and yield (name, path)."""
    folder.mkdir(parents=True, exist_ok=True)
    for (network, model, pixels), form, storage in product(networks(), FORMATS, STORAGES):
        path = folder / f"{network}_{form}_{storage}.onnx"
        options = ExportOptions(format=form, weights=storage)
        export_onnx(model, path, preprocessing=pixels, class_names=[str(index) for index in range(10)], options=options)
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, *pixels.shape), dtype=np.uint8)
        logits = IntegerReference(read_exported_model(path).graph).run(images)
        np.savez(path.with_suffix(".npz"), images=images, logits=logits)
        yield f"{network}, {form}, {storage}", path


def networks() -> Iterator[tuple[str, nn.Module, Preprocessing]]:
    """Yield name, frozen or prepared network, and preprocessing."""
    for bits in (4, 2):
        info, model = load_model(ZOO / f"w{bits}a{bits}_frozen.safetensors", build_model)
        yield f"resnet20_w{bits}a{bits}", model, info.preprocessing
    torch.manual_seed(0)
    pixels = Preprocessing.from_statistics((1, 16, 16), 0.3, 0.4)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 512), nn.ReLU()]
    x = torch.randn(IMAGES, *pixels.shape)
    for bits in (4, 2):
        network = nn.Sequential(*layers, nn.Linear(512, 10))
        model = prepare(network, QuantConfig(weight_bits=bits, activation_bits=bits), x[:1], input_grid=pixels)
        calibrate(model, [x])
        yield f"linear_w{bits}a{bits}", model, pixels


def try_release(release: str, folder: Path, models: dict[str, Path]) -> dict[str, str]:
    """Return the result of each model in a release, by model name."""
    environment = folder / release.replace("==", "-")
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
        packages = [release, "numpy<2" if release.startswith("onnxruntime==1.1") else "numpy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)  # noqa: S603 - pip
    command = [str(python), "-c", RUN, release.partition("==")[0], *map(str, models.values())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - the program above
    found = json.loads(done.stdout)
    return {name: found[str(path)] for name, path in models.items()}


if __name__ == "__main__":
    typer.run(main)
