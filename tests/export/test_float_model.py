"""The float baseline: the network's own logits, any batch, metadata like the others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from qil_deploy.errors import OutputError
from qil_deploy.export import export_float_onnx
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
    """The tracer's metadata holds stack traces with paths."""
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
