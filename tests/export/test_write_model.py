"""Files are written tensor by tensor, with the same bytes that protobuf writes for the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import CertificateError
from qil_deploy.export import write_model
from qil_deploy.export.emitter import Emitter
from qil_deploy.export.options import ExportOptions
from qil_deploy.export.passes import lower
from qil_deploy.export.write_model import append_metadata, write_graph
from qil_deploy.onnx_io.model_file import read_model

if TYPE_CHECKING:
    from .conftest import Exports

ARRAYS: list[NDArray[Any]] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(2.5, np.float64),
    np.zeros((0, 3), np.int32),
    np.arange(300, dtype=np.uint8),
    np.arange(-8, 8, dtype=np.int64),
    np.arange(-8, 7).astype(ml_dtypes.int4),
    np.arange(-2, 2).astype(ml_dtypes.int2).reshape(2, 2),
    np.array([True, False]),
]


def graph_of(arrays: list[NDArray[Any]]) -> ir.Model:
    emitter = Emitter()
    for index, array in enumerate(arrays):
        emitter.op("Identity", [emitter.tensor(ir.tensor(array, name=f"w{index}"))], f"y{index}")
    outputs = [output for node in emitter.nodes for output in node.outputs]
    for output, array in zip(outputs, arrays, strict=True):
        output.shape, output.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return emitter.model([], outputs, {"": 25}, ir_version=13)


def test_every_type_is_written_as_protobuf_writes_it(tmp_path: Path) -> None:
    model, path = graph_of(ARRAYS), tmp_path / "model.onnx"
    write_graph(model, path)
    assert path.read_bytes() == ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize(
    "options", [{}, {"format": "qdq"}, {"weights": "int8"}, {"format": "qdq", "weights": "int8", "input": "float"}]
)
def test_networks_are_written_as_protobuf_writes_them(
    exports: Exports, options: dict[str, str], tmp_path: Path
) -> None:
    case, path = exports.resnet(), tmp_path / "model.onnx"
    model = lower(case.frozen, case.preprocessing, ExportOptions(**options)).model  # type: ignore[arg-type] # literals
    write_graph(model, path)
    assert path.read_bytes() == ir.to_proto(model).SerializeToString()
    written = path.read_bytes()
    append_metadata(path, {"b": ["long", "list"] * 50})
    assert json.loads(read_model(path).metadata["qil_deploy"]) == {"b": ["long", "list"] * 50}
    assert path.read_bytes()[: len(written)] == written
    model.metadata_props["qil_deploy"] = json.dumps({"b": ["long", "list"] * 50}, separators=(",", ":"))
    assert path.read_bytes() == ir.to_proto(model).SerializeToString()
    onnx.checker.check_model(path, full_check=True)


def test_more_than_a_message_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_model, "_MOST_BYTES", 400)
    with pytest.raises(CertificateError, match=r"the file would have [\d,]+ bytes; an ONNX file holds 400"):
        write_graph(graph_of(ARRAYS), tmp_path / "model.onnx")
