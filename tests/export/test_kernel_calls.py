"""Products of packed weights and pools as operators of the kernel library: the same codes, and files that lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ModelFileError
from qil_deploy.export.emitter import Emitter
from qil_deploy.export.passes.kernel_calls import LowBitMaxPool
from qil_deploy.onnx_io import LOW_BIT_MATMUL, LOW_BIT_MAX_POOL, TERNARY_CONV, read_metadata, read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests import verify
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.kernel_library import find_kernel_library, operators_in
from qil_deploy.runtime_tests.layers import describe_layers

from .parts_of_models import changed_file, function_of, node_of
from .rewriting import rewritten

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports


@pytest.fixture(scope="module")
def case(exports: Exports) -> Case:
    """Return a network with pools after its convolutions, and a linear layer large enough to be packed."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Flatten(),
        nn.Linear(256, 4096),
        nn.ReLU(),
        nn.Linear(4096, 5),
    )
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16)).astype(np.uint8)
    preprocessing = Preprocessing(channels=3, height=16, width=16, scale=0.02, zero_point=100)
    return exports.case(network, QuantConfig(weight_bits=2, activation_bits=2), images, preprocessing)


def test_every_code_and_logit_is_as_before(case: Case, exports: Exports, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    exports.check_equal(case, path, kernels=True)
    plain, found = read_model(case.export(tmp_path / "plain.onnx")), read_model(path)
    expected, actual = IntegerReference(plain).run_all(case.images), IntegerReference(found).run_all(case.images)
    for name in actual:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)
    called = [(node.op_type, node.name) for node in found.nodes if node.domain == "qil.deploy"]
    assert called == [(TERNARY_CONV, "3"), (LOW_BIT_MAX_POOL, "5"), (LOW_BIT_MATMUL, "7")]
    metadata = read_metadata(found)
    assert sorted(metadata["passes"]["kernels"]) == ["3", "5", "7"]
    assert metadata["left_alone"]["kernels"][f"no {TERNARY_CONV} makes the codes that it pools"] == ["2"]
    assert {function.name for function in onnx.load(path).functions} == {name for name, _ in called}
    assert operators_in(found) == {name for name, _ in called}


def test_every_set_of_kernels_makes_every_code(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("qil_deploy_kernels", reason="qil-deploy-kernels is not installed: `make kernels`")
    library = find_kernel_library("installed")
    path = case.export(tmp_path / "model.onnx", kernels=True)
    labels = np.arange(len(case.images)) % len(case.class_names)
    images = ImageSet(images=case.images, labels=labels, class_names=case.class_names)
    for kernel_set in ("scalar", *library.runnable_sets()):
        report = verify(path, images.batches(4), kernels=replace(library, kernel_set=kernel_set))
        assert report.exact, kernel_set
        assert len(report.comparisons) == 4  # one for each level
        assert all(each.difference is None and each.tensors > 15 for each in report.comparisons)


def test_layers_are_described_as_before(case: Case, tmp_path: Path) -> None:
    plain = describe_layers(read_exported_model(case.export(tmp_path / "plain.onnx")))
    found = describe_layers(read_exported_model(case.export(tmp_path / "model.onnx", kernels=True)))
    assert [layer.operator for layer in found] == ["QLinearConv", TERNARY_CONV, LOW_BIT_MATMUL, "QGemm"]
    for layer, other in zip(found, plain, strict=True):
        assert (layer.name, layer.weight_shape, layer.macs) == (other.name, other.weight_shape, other.macs)
        assert (layer.bytes, layer.zero_share) == (other.bytes, other.zero_share)


def pool(producer: str = TERNARY_CONV, domain: str = "qil.deploy", **changed: object) -> ir.Model:
    """A graph of one pool after a node of some operator."""
    emitter = Emitter()
    x = ir.Value(name="x", shape=ir.Shape(["n", 4, 6, 6]), type=ir.TensorType(ir.DataType.UINT8))
    made = emitter.op(producer, [x], "made", domain=domain)
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 0, 0]} | changed
    return emitter.model([x], [emitter.op("MaxPool", [made], "y", attributes=attributes)], {"": 13}, ir_version=7)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (pool(), None),
        (pool(ceil_mode=0, dilations=[1, 1]), None),
        (pool("LowBitConv"), "no TernaryConv makes the codes that it pools"),
        (pool("TernaryConv", ""), "no TernaryConv makes the codes that it pools"),
        (pool(ceil_mode=1), "its windows may reach beyond its pads"),
        (pool(dilations=[1, 2]), "its windows have gaps"),
    ],
)
def test_pools_of_ternary_convolutions_are_rewritten(model: ir.Model, reason: str | None) -> None:
    changed, notes = rewritten(model, LowBitMaxPool())
    node = changed.graph.node(-1)
    if reason is None:
        assert (node.op_type, node.domain, notes.rewritten) == (LOW_BIT_MAX_POOL, "qil.deploy", ["y"])
        assert sorted(node.attributes) == ["kernel_shape", "pads", "strides"]
    else:
        assert (node.op_type, notes.left_alone) == ("MaxPool", {reason: ["y"]})


# ---- Files that say something else than exports do


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return case.export(tmp_path_factory.mktemp("calls") / "model.onnx", kernels=True).read_bytes()


def swapped_inputs(model: onnx.ModelProto) -> None:
    inputs = function_of(model, LOW_BIT_MATMUL).node[0].input
    inputs[2], inputs[3] = inputs[3], inputs[2]


def other_domain(model: onnx.ModelProto) -> None:
    function_of(model, LOW_BIT_MATMUL).node[0].domain = ""


def fixed_level(model: onnx.ModelProto) -> None:
    (level,) = [each for each in function_of(model, LOW_BIT_MATMUL).node[0].attribute if each.name == "accuracy_level"]
    level.ref_attr_name, level.i = "", 0


def no_import(model: onnx.ModelProto) -> None:
    del function_of(model, LOW_BIT_MATMUL).opset_import[0]


def average_pool(model: onnx.ModelProto) -> None:
    function_of(model, LOW_BIT_MAX_POOL).node[0].op_type = "AveragePool"


def ceil_mode(model: onnx.ModelProto) -> None:
    function_of(model, LOW_BIT_MAX_POOL).node[0].attribute.append(onnx.helper.make_attribute("ceil_mode", 1))


def second_output(model: onnx.ModelProto) -> None:
    function_of(model, LOW_BIT_MAX_POOL).node[0].output.append("places")


def gone(name: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.functions.remove(function_of(model, name))


def other_attribute(model: onnx.ModelProto) -> None:
    node_of(model, LOW_BIT_MAX_POOL).attribute.append(onnx.helper.make_attribute("dilations", [1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped_inputs, "its function qil.deploy.LowBitMatMul is not MatMulNBits, as exports write it"),
        (other_domain, "its function qil.deploy.LowBitMatMul is not MatMulNBits"),
        (fixed_level, "its function qil.deploy.LowBitMatMul is not MatMulNBits"),
        (no_import, "its function qil.deploy.LowBitMatMul is not MatMulNBits"),
        (average_pool, "its function qil.deploy.LowBitMaxPool is not MaxPool, as exports write it"),
        (ceil_mode, "its function qil.deploy.LowBitMaxPool is not MaxPool"),
        (second_output, "its function qil.deploy.LowBitMaxPool is not MaxPool"),
        (gone(LOW_BIT_MATMUL), "nodes qil.deploy.LowBitMatMul, but not the function of that name"),
        (gone(LOW_BIT_MAX_POOL), "nodes qil.deploy.LowBitMaxPool, but not the function of that name"),
        (other_attribute, "attribute 'dilations' of LowBitMaxPool is not supported"),
    ],
)
def test_another_function_is_refused(
    exported: bytes, change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    path = changed_file(exported, change, tmp_path)
    with pytest.raises(ModelFileError, match=message):
        IntegerReference(read_model(path)).run(np.zeros((1, 3, 16, 16), np.uint8))
