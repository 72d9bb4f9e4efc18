"""Find out which torchvision and timm networks convert to integers unmodified, and whether any result differs.

    python benchmarks/network_list.py --page docs/network-list.md               # all of them: hours
    python benchmarks/network_list.py torchvision/resnet18 timm/dla34

Each network is built by its package with random weights, given BatchNorm statistics and slopes distributed like trained
ones (`networks.spread`), prepared with 4 bits for weights and activations, calibrated, frozen and exported to
`qlinear`. Then every code and every output value is compared between frozen PyTorch, the integer reference and ONNX
Runtime, at every optimization level with one thread and with two. A network without an integer form is tried again with
`allow_float`: the operations that stay in float are listed, and only its outputs are compared, with frozen PyTorch. A
network that is refused even then is listed with the error.

The result of a network is written to `OUT/PACKAGE_NAME.json` immediately; a network that has such a file is not tried
again. The table is written between `<!-- networks -->` and `<!-- end -->` on the page.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
import timm
import torch
import torchvision.models
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from networks import PREPROCESSING, colour_images, spread
from qil_deploy import QuantConfig, calibrate, freeze, prepare
from qil_deploy.commands.predictors import record_codes
from qil_deploy.errors import QilDeployError
from qil_deploy.export import export_onnx
from qil_deploy.files import write_text
from qil_deploy.integers import FrozenLayer
from qil_deploy.network import FloatIsland, PreparedModel
from qil_deploy.onnx_io import OUTPUT_NAME
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests.backends import REFERENCE, CodeReader, ExecutedGraph, code_reader, onnx_backend_name
from qil_deploy.runtime_tests.compare_tensors import compare_tensors
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS
from qil_deploy.terminal import Console, Progress
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

Result = TypeVar("Result")
Kind = Literal["integers", "float parts", "refused"]
_WORDS: dict[Kind, str] = {"integers": "in integers alone", "float parts": "with float parts", "refused": "refused"}
BITS = 4
IMAGES = 4
CLASSES = 10
CLASS_NAMES = tuple(f"class {index}" for index in range(CLASSES))
DEFAULT_SIZE = 64
# Networks that do not accept maps as small as the others do.
SIZES = {
    "torchvision/alexnet": 128,
    "torchvision/googlenet": 96,
    "torchvision/inception_v3": 128,
    **{f"torchvision/vgg{depth}{norm}": 224 for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"torchvision/{name}": 224 for name in torchvision.models.list_models(include=("vit_*", "maxvit_*"))},
    "torchvision/efficientnet_v2_l": 128,
    "timm/inception_resnet_v2": 128,
    "timm/inception_v3": 128,
    "timm/inception_v4": 128,
    "timm/legacy_xception": 96,
    "timm/nasnetalarge": 96,
    "timm/pnasnet5large": 96,
    "timm/selecsls42": 96,
    "timm/vgg11": 224,
    "timm/vgg11_bn": 224,
    "timm/vgg16_bn": 224,
}
TIMM = (
    *("convnext_atto", "cs3darknet_s", "cspdarknet53", "cspresnet50", "darknet53", "densenet121", "dla34", "dla46_c"),
    *("dla46x_c", "dla60_res2net", "dpn48b", "dpn68", "eca_resnet33ts", "ecaresnet26t", "ecaresnetlight"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_lite0", "ese_vovnet19b_dw", "fasternet_t0", "fbnetc_100"),
    *("fbnetv3_b", "gcresnext26ts", "gernet_s", "ghostnet_100", "ghostnetv2_100", "hardcorenas_a", "hgnetv2_b0"),
    *("hrnet_w18_small", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnet_050", "legacy_seresnet18"),
    *("legacy_xception", "mixnet_s", "mnasnet_100", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("mobilenetv3_small_100", "mobilenetv4_conv_medium", "mobilenetv4_conv_small", "mobileone_s0", "regnetx_002"),
    *("regnety_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resnest14d", "resnet10t"),
    *("resnet14t", "resnet18", "resnet26t", "resnet34", "resnet34d", "resnet50", "resnetblur50", "resnetrs50"),
    *("resnetv2_50", "resnext50_32x4d", "rexnet_100", "selecsls42", "semnasnet_100", "seresnet33ts"),
    *("seresnext26d_32x4d", "skresnet18", "spnasnet_100", "starnet_s1", "tf_efficientnet_lite0"),
    *("tf_efficientnetv2_b0", "tf_mobilenetv3_small_minimal_100", "tinynet_e", "tresnet_m", "vgg11", "vgg11_bn"),
    *("vgg16_bn", "vovnet39a", "wide_resnet50_2", "xception41"),
)


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """Result for one network.

    Attributes:
        schema: `SCHEMA`.
        name: package and name.
        size: height and width of its images.
        kind: integers only, with float parts, or refused.
        remark: operations that stay in float, with counts; or the error.
        layers: number of convolutions and linear layers.
        tensors: number of code and output tensors compared with frozen PyTorch, for one backend.
        codes: number of their elements, on `IMAGES` images.
        differing: number of elements that differ from frozen PyTorch, over all backends.
        bytes: size of the ONNX file.
        prepare_s, export_s: seconds.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.network_list/1"

    schema: str
    name: str
    size: int
    kind: Kind
    remark: str = ""
    layers: int = 0
    tensors: int = 0
    codes: int = 0
    differing: int = 0
    bytes: int = 0
    prepare_s: float = 0.0
    export_s: float = 0.0


def torchvision_names() -> list[str]:
    """Return the names of all torchvision classification and segmentation networks."""
    modules = (torchvision.models, torchvision.models.segmentation)
    return [name for module in modules for name in torchvision.models.list_models(module=module)]


ALL = (*(f"torchvision/{name}" for name in torchvision_names()), *(f"timm/{name}" for name in TIMM))


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="PACKAGE/NAME", help="Networks. [default: all]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the result of each network.")] = Path("runs/networks"),
    page: Annotated[Path | None, typer.Option(help="Page into which the table of all results is written.")] = None,
) -> None:
    """Try networks that have no result yet, and print the table of the named ones."""
    chosen = tuple(names) if names else ALL
    with Progress() as bar:
        task = bar.add_task("networks", total=len(chosen))
        for name in chosen:
            bar.update(task, description=name)
            if not path_of(out, name).is_file():
                row = examine(name)
                write_report(path_of(out, name), row)
                bar.console.print(f"{name}: {row.kind}, {row.differing} differing. {row.remark}")
            bar.advance(task)
    rows = [read_report(path_of(out, name), NetworkRow) for name in chosen]
    Console().print(console_table("networks", rows_of(rows)))
    if page is not None:
        tried = [read_report(path_of(out, name), NetworkRow) for name in ALL if path_of(out, name).is_file()]
        table = f"{markdown_table(rows_of(tried))}\n\n{summary(tried)}\n"
        write_text(page, with_tables(page.read_text(), {"networks": table}))


def path_of(folder: Path, name: str) -> Path:
    """Return the path of a network's result."""
    return folder / f"{name.replace('/', '_')}.json"


def examine(name: str) -> NetworkRow:
    """Try one network with integers only, then with float parts."""
    size = SIZES.get(name, DEFAULT_SIZE)
    row = NetworkRow(schema=NetworkRow.SCHEMA, name=name, size=size, kind="refused")
    try:
        return _compared(row, allow_float=False)
    except QilDeployError:
        gc.collect()
    try:
        return _compared(row, allow_float=True)
    except QilDeployError as error:
        return replace(row, remark=str(error))
    finally:
        gc.collect()


def _compared(row: NetworkRow, *, allow_float: bool) -> NetworkRow:
    """Prepare, export and compare a network."""
    images, preprocessing = images_for(row.size)
    x = torch.from_numpy(preprocessing.normalize(images))
    prepare_s, prepared = prepared_network(row.name, preprocessing, x, allow_float=allow_float)
    parts = float_calls(prepared)
    frozen = freeze(prepared, share_parameters=True)
    expected = record_codes(frozen, x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_s, result = timed(
            lambda: export_onnx(frozen, path, preprocessing=preprocessing, class_names=CLASS_NAMES)
        )
        found = [read(images) for read in _backends(path, integers=not parts)]
    kept = [name for name in found[0] if name in expected and (not parts or name == OUTPUT_NAME)]
    return replace(
        row,
        kind="float parts" if parts else "integers",
        remark=", ".join(f"{count} {call}" for call, count in sorted(parts.items())),
        layers=sum(isinstance(module, FrozenLayer) for module in frozen.modules()),
        tensors=len(kept),
        codes=sum(expected[name].size for name in kept),
        differing=sum(
            compare_tensors(codes[name], expected[name], range(IMAGES)).differing for codes in found for name in kept
        ),
        bytes=result.size,
        prepare_s=round(prepare_s, 2),
        export_s=round(export_s, 2),
    )


def images_for(size: int) -> tuple[NDArray[np.uint8], Preprocessing]:
    """Return images for a network of the list, and their preprocessing."""
    return colour_images(IMAGES, size), replace(PREPROCESSING, height=size, width=size)


def prepared_network(
    name: str, preprocessing: Preprocessing, x: Tensor, *, allow_float: bool = False
) -> tuple[float, PreparedModel]:
    """Return a network of the list, prepared with `BITS` and calibrated, and the seconds that preparing took."""
    network = spread(build(name), [x])
    config = QuantConfig(weight_bits=BITS, activation_bits=BITS, allow_float=allow_float)
    seconds, prepared = timed(lambda: prepare(network, config, x[:1], input_grid=preprocessing))
    calibrate(prepared, [x])
    return seconds, prepared


def _backends(path: Path, *, integers: bool) -> Iterator[CodeReader]:
    """Yield the backends that compute the codes of a file.

    These are ONNX Runtime at every level with one thread and with two and, for files with integers only, the reference.
    """
    exported = read_exported_model(path)
    graph = ExecutedGraph.of(exported)
    if integers:
        yield code_reader(exported, graph, REFERENCE, threads=1, others={})
    for level in OPTIMIZATION_LEVELS:
        for threads in (1, 2):
            yield code_reader(exported, graph, onnx_backend_name(level), threads=threads, others={})


def build(name: str) -> nn.Module:
    """Return a torchvision or timm network with the same random weights every time."""
    torch.manual_seed(0)
    package, _, model = name.partition("/")
    if package == "timm":
        network: nn.Module = timm.create_model(model, num_classes=CLASSES)
    elif "segmentation" in getattr(torchvision.models.get_model_builder(model), "__module__", ""):
        network = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=CLASSES)
    else:
        network = torchvision.models.get_model(model, weights=None, num_classes=CLASSES)
    return network


def float_calls(prepared: nn.Module) -> Counter[str]:
    """Return the number of operations of each name that a prepared network keeps in float."""
    bodies = [module.body for module in prepared.modules() if isinstance(module, FloatIsland)]
    return Counter(
        type(body.get_submodule(str(node.target))).__name__
        if node.op == "call_module"
        else node.name.rstrip("_0123456789")
        for body in bodies
        for node in body.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
    )


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def rows_of(rows: Sequence[NetworkRow]) -> Rows:
    """Return the table of networks."""
    headings = ("network", "size", "runs in", "layers", "codes compared", "differing", "4-bit file", "remark")
    return Rows(headings=headings, cells=[_cells(row) for row in rows])


def _cells(row: NetworkRow) -> list[str]:
    if row.kind == "refused":
        return [row.name, str(row.size), "refused", "", "", "", "", row.remark]
    figures = [str(row.layers), f"{row.codes:,}", str(row.differing), f"{row.bytes / 1e6:.2f} MB"]
    return [row.name, str(row.size), row.kind, *figures, row.remark]


def summary(rows: Sequence[NetworkRow]) -> str:
    """Return the number of networks of each kind, one line per package."""
    lines = []
    for package in ("torchvision", "timm"):
        kinds = Counter(row.kind for row in rows if row.name.startswith(f"{package}/"))
        counts = ", ".join(f"{kinds[kind]} {word}" for kind, word in _WORDS.items())
        lines.append(f"{package}: {kinds.total()} networks, {counts}.")
    return " ".join(lines)


if __name__ == "__main__":
    typer.run(main)
