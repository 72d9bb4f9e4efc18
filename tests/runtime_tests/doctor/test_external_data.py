"""Weights beside the file: read like weights inside it; if outside its folder, not read, and no claim is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, numpy_helper

from qil_deploy.onnx_io.model_file import parse_file
from qil_deploy.onnx_io.schema import parse_message
from qil_deploy.onnx_io.tensors import DefectError
from qil_deploy.runtime_tests.doctor import Diagnosis, diagnose
from qil_deploy.runtime_tests.doctor.external_data import OutsideError, read_external

from .graph_files import CONVOLUTION, build_model, constants

if TYPE_CHECKING:
    from tests.command_line import Outcome

# Two products of these are more than int16 holds, and one scale serves all channels: found by looking at the numbers.
HEAVY = constants(w=np.full((3, 2, 3, 3), 127, np.int8), w_scale=np.float32(0.1), w_zero=np.int8(0))
BODY = CONVOLUTION.replace("<axis = 0>", "")


def write_external(folder: Path, location: str = "weights.bin", *, store: bool = True) -> Path:
    """Write the model with all initializers at `location`, and the data there."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data = build_model(BODY, HEAVY), b""
    for tensor in model.graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(len(data))), ("length", str(len(content)))):
            tensor.external_data.add(key=key, value=value)
        data += content
    if store:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(data)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def kinds(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in diagnosis.findings]


@pytest.mark.parametrize("location", ["weights.bin", "data/weights.bin", "./weights.bin"])
def test_weights_beside_the_file_are_read(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside.onnx"
    inside.write_bytes(build_model(BODY, HEAVY).SerializeToString())
    diagnosis, expected = diagnose(write_external(tmp_path / "model", location)), diagnose(inside)
    assert ("int16-saturation", "inexact") in kinds(diagnosis)
    assert ("per-tensor-weights", "note") in kinds(diagnosis)
    assert diagnosis.findings == expected.findings
    assert diagnosis.kernels == expected.kernels
    assert len(diagnosis.compared) == 1


def refuse_to_run(*_: object) -> None:
    raise AssertionError("ONNX Runtime was asked")


OUTSIDE: dict[str, Callable[[Path], str]] = {
    "the folder above": lambda _: "../weights.bin",
    "the folder above, on a way round": lambda _: "data/../../weights.bin",
    "the folder above, as Windows writes it": lambda _: "..\\weights.bin",
    "an absolute path": lambda folder: str(folder.parent / "weights.bin"),
    "an absolute path, as Windows writes it": lambda _: "C:\\weights.bin",
    "an address in memory": lambda _: "*/_ORT_MEM_ADDR_/*",
    "a link that leads out": lambda folder: linked(folder / "link.bin", folder.parent / "weights.bin"),
    "a folder that is a link": lambda folder: linked(folder / "data", folder.parent) + "/weights.bin",
    "a pipe": lambda folder: piped(folder / "pipe.bin"),
    "a folder": lambda folder: made(folder / "data"),
}


def linked(link: Path, target: Path) -> str:
    link.symlink_to(target)
    return link.name


def made(folder: Path) -> str:
    folder.mkdir()
    return folder.name


def piped(path: Path) -> str:
    os.mkfifo(path)
    return path.name


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_folder_is_opened(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    path = write_external(folder, OUTSIDE[name](folder), store=False)
    monkeypatch.setattr(sys.modules["qil_deploy.runtime_tests.doctor.diagnose"], "try_runtime", refuse_to_run)
    diagnosis = diagnose(path)
    assert kinds(diagnosis) == [("external-data", "unknown")]
    (finding,) = diagnosis.findings
    assert finding.count == len(HEAVY)
    assert "ONNX Runtime was not given the file" in finding.why
    assert not diagnosis.healthy
    outcome = call("doctor", path)
    assert outcome.code == 1
    assert "What holds this model back is not known" in outcome.out


def test_a_link_that_stays_in_the_folder_is_followed(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "blob")
    (tmp_path / "weights.bin").symlink_to("blob")
    tensor = parse_file(path).graph.initializer[0]
    assert read_external(tensor, tmp_path) == HEAVY["x_scale"]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_data_that_are_not_there_are_named(tmp_path: Path, damage: str) -> None:
    path = write_external(tmp_path)
    if damage == "missing":
        (tmp_path / "weights.bin").unlink()
    else:
        (tmp_path / "weights.bin").write_bytes(bytes(3))
    diagnosis = diagnose(path)
    assert kinds(diagnosis)[0] == ("does-not-load", "blocks")
    assert ("external-data", "unknown") in kinds(diagnosis)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "-1", "offset of initializer 'w' is '-1', which is no number of bytes"),
        ("offset", "9" * 30, "which is no number of bytes"),
        ("length", "1e3", "length of initializer 'w' is '1e3'"),
        ("length", "53", r"initializer 'w' has 53 bytes in weights\.bin where 54 belong"),
        ("offset", "900", r"ends at byte 954 of weights\.bin, which has 54"),
        ("location", "", "names no file"),
        ("location", "weights.bin\0", "names no file"),
        ("location", "a" * 5000, "cannot be read"),
    ],
)
def test_entries_that_say_nothing(tmp_path: Path, key: str, value: str, message: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(54))
    entries = {"location": "weights.bin", "offset": "0", "length": "54"} | {key: value}
    tensor = _tensor(TensorProto.INT8, [3, 2, 3, 3], entries)
    with pytest.raises(DefectError, match=message) as raised:
        read_external(tensor, tmp_path)
    assert not isinstance(raised.value, OutsideError)
    assert len(str(raised.value)) < 1000


def test_packed_and_empty_tensors(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\xf1\x2e\x07")
    packed = _tensor(TensorProto.INT4, [5], {"location": "weights.bin", "length": "3"})
    np.testing.assert_array_equal(read_external(packed, tmp_path), np.array([1, -1, -2, 2, 7], np.int8), strict=True)
    empty = _tensor(TensorProto.FLOAT, [0, 4], {"location": "weights.bin", "offset": "1", "length": "0"})
    assert read_external(empty, tmp_path).shape == (0, 4)


def _tensor(kind: int, shape: list[int], entries: dict[str, str]) -> Message:
    """Return a TensorProto as this project reads it."""
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return parse_message("TensorProto", tensor.SerializeToString())
