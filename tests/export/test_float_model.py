"""The float baseline: the network's own logits, any batch, metadata like the others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qil_deploy import Preprocessing
from qil_deploy.errors import OutputError, UnsupportedModelError
from qil_deploy.export import export_float_onnx
from qil_deploy.runtime_tests.bench import BenchOptions, benchmark
from qil_deploy.runtime_tests.exported_model import read_exported_model

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports


@pytest.fixture(scope="module")
def case(exports: Exports) -> Case:
    return exports.resnet(width=4)


@pytest.fixture(scope="module")
def path(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    result = export_float_onnx(
        case.network, path, preprocessing=case.preprocessing, class_names=case.class_names, data="digits"
    )
    assert (result.path, result.size, result.certificate) == (path, path.stat().st_size, ())
    return path


def test_logits_are_the_networks_at_every_batch_size(case: Case, path: Path, exports: Exports) -> None:
    x = case.preprocessing.normalize(case.images)
    with torch.no_grad():
        expected = case.network.eval()(torch.from_numpy(x)).numpy()
    for size in (1, 3, 32):
        found = exports.run_runtime(onnx.load(path), x[:size])["logits"]
        # Float convolutions of two libraries sum in different orders.
        np.testing.assert_allclose(found, expected[:size], rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_metadata_and_interface(case: Case, path: Path) -> None:
    exported = read_exported_model(path)
    assert (exported.format, exported.input, exported.data) == ("float", "float", "digits")
    assert exported.class_names == case.class_names
    assert exported.preprocessing == case.preprocessing
    model = onnx.load(path)
    (entry,) = model.metadata_props
    assert json.loads(entry.value)["schema"] == 1
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    onnx.checker.check_model(model, full_check=True)


def test_no_trace_of_the_machine_that_wrote_it(path: Path) -> None:
    """The tracer's metadata contains stack traces with paths."""
    assert b"site-packages" not in path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_an_output_below_a_file_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write"):
        export_float_onnx(
            case.network,
            tmp_path / "file" / "float.onnx",
            preprocessing=case.preprocessing,
            class_names=case.class_names,
        )


class Dense(nn.Module):
    """A network of maps, in a container of choice."""

    def __init__(self, *, several: bool) -> None:
        super().__init__()
        self.conv, self.head, self.several = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2), several

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        return {"map": y, "none": None, "rows": [self.head(y.mean((2, 3))), y.relu()]} if self.several else y


@pytest.mark.parametrize("several", [False, True])
def test_maps_and_several_outputs_are_baselines_too(several: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, pixels = Dense(several=several), Preprocessing.from_statistics((3, 6, 8), 0.5, 0.5)
    path = tmp_path / "float.onnx"
    export_float_onnx(network, path, preprocessing=pixels, class_names=())
    exported = read_exported_model(path)
    shapes = {"map": (4, 6, 8), "rows_0": (2,), "rows_1": (4, 6, 8)} if several else {"logits": (4, 6, 8)}
    assert {output.name: output.shape for output in exported.outputs} == shapes
    assert [output.kind for output in exported.outputs][:2] == ["dense logits", "logits"][: 1 + several]
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 8), np.uint8)
    found = exported.onnx_runner()(images)
    with torch.no_grad():
        result = network(torch.from_numpy(pixels.normalize(images)))
    expected = [tensor.numpy() for tensor in tree_leaves(result) if tensor is not None]
    for name, values in zip(shapes, expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)  # sums in another order
    report = benchmark([path], BenchOptions(repeats=2, warmup=0, processes=1, caches=("warm",)))
    assert len(report.latencies) == 1
    assert report.failures == ()


def test_a_network_that_returns_no_floats_is_refused(tmp_path: Path) -> None:
    class Classes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).argmax(1, keepdim=True)

    pixels = Preprocessing.from_statistics((3, 6, 8), 0.5, 0.5)
    with pytest.raises(UnsupportedModelError, match="returns int64 for one image; it has to return rows or maps"):
        export_float_onnx(Classes(), tmp_path / "float.onnx", preprocessing=pixels, class_names=())
