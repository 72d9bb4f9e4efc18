"""A real model with changed bytes or truncated: read or refused by the reader, the reference and the certificate.

ONNX Runtime does not get to see them: what it does with such files is not ours to promise.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qil_deploy.errors import CertificateError, DataError, ModelFileError
from qil_deploy.export.certify import CertificateLine, certify
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.layers import describe_layers

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 1, 28, 28), np.uint8)


@pytest.fixture
def _without_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = import_module("qil_deploy.export.certify")  # a function of the package has its name
    monkeypatch.setattr(certificate, "_float_line", lambda _: CertificateLine(name="float", worst=0, bound=0, where=""))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("_without_runtime")
def test_flipped_and_cut_files(content: bytes, tmp_path: Path, data: st.DataObject) -> None:
    # Weights fill most of the file: half of the changes go to its ends, where names, sizes and numbers of fields are.
    ends = st.one_of(st.integers(0, 15_000), st.integers(len(content) - 12_000, len(content) - 1))
    places = data.draw(st.lists(st.one_of(ends, st.integers(0, len(content) - 1)), min_size=0, max_size=3))
    damaged = bytearray(content)
    for place in places:
        damaged[place] = data.draw(st.integers(0, 255))
    if not places or data.draw(st.integers(0, 3)) == 0:
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = tmp_path / "flipped.onnx"
    path.write_bytes(damaged)
    _read_and_run(path)
    try:
        certify(path, {})
    except (ModelFileError, CertificateError) as error:
        assert str(path) in str(error) or isinstance(error, CertificateError)  # noqa: PT017 - either outcome is right


@pytest.mark.usefixtures("_without_runtime")
@pytest.mark.parametrize("strides", [[0, 1], [1, 1, 1], []])
def test_windows_that_are_none_fail_the_certificate(content: bytes, tmp_path: Path, strides: list[int]) -> None:
    model = onnx.load_from_string(content)
    convolution = next(node for node in model.graph.node if node.op_type == "QLinearConv")
    (attribute,) = [entry for entry in convolution.attribute if entry.name == "strides"]
    attribute.ints[:] = strides
    path = tmp_path / "windows.onnx"
    onnx.save(model, path)
    with pytest.raises((CertificateError, ModelFileError)):
        certify(path, {})


def _read_and_run(path: Path) -> None:
    try:
        model = read_exported_model(path)
        IntegerReference(model.graph).run(np.zeros((1, *model.preprocessing.shape), np.uint8))
        describe_layers(model)
    except (ModelFileError, DataError) as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_certificate_notices_every_changed_weight(content: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    reference = IntegerReference(read_exported_model(path).graph)
    codes = {
        node.name: reference.constants[node.inputs[3]]
        for node in reference.nodes
        if node.op_type in ("QLinearConv", "QGemm")
    }
    model = onnx.load_from_string(content)
    packed = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT2]
    tensor = data.draw(st.sampled_from(packed))
    weights = bytearray(tensor.raw_data)
    weights[data.draw(st.integers(0, len(weights) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    tensor.raw_data = bytes(weights)
    path.write_bytes(model.SerializeToString())
    with pytest.raises((CertificateError, ModelFileError)):
        certify(path, codes)
