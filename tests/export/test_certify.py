"""The certificate: each line fails, naming the node, for a planted violation in an exported file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qil_deploy.errors import CertificateError
from qil_deploy.export.certify import CertificateLine, certify
from qil_deploy.export.export import expected_codes
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.integers.frozen_modules import FrozenAdd, FrozenGlobalAveragePool, FrozenRescale
from qil_deploy.onnx_io.executed_kernels import executed_operators

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

Codes = dict[str, NDArray[np.int8]]
CONV = "layer1.0.conv2"


class Patch:
    """An exported file that is changed node by node, and the certificate's result."""

    def __init__(self, case: Case, path: Path, **options: Any) -> None:  # noqa: ANN401 - ExportOptions'
        self.path = case.export(path, **options)
        self.model = onnx.load(self.path)
        self.codes = dict(expected_codes(case.frozen))

    def node(self, name: str) -> onnx.NodeProto:
        node: onnx.NodeProto
        (node,) = [node for node in self.model.graph.node if node.name == name]
        return node

    def array(self, name: str) -> NDArray[Any]:
        (tensor,) = [tensor for tensor in self.model.graph.initializer if tensor.name == name]
        return numpy_helper.to_array(tensor).copy()

    def set_input(self, node: onnx.NodeProto, index: int, value: NDArray[Any] | np.generic) -> None:
        """Give a node a constant of its own."""
        name = f"planted_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        node.input[index] = name

    def certify(self) -> list[CertificateLine]:
        onnx.checker.check_model(self.model, full_check=True)
        self.path.write_bytes(self.model.SerializeToString())
        return certify(self.path, self.codes)

    def refusal(self) -> str:
        with pytest.raises(CertificateError) as caught:
            self.certify()
        return str(caught.value)


@pytest.fixture
def patch(exports: Exports, tmp_path: Path) -> Patch:
    return Patch(exports.resnet(), tmp_path / "model.onnx", weights="int8")


@pytest.mark.parametrize("options", [{}, {"format": "qdq"}, {"weights": "int8"}, {"input": "float"}])
def test_an_unchanged_file_passes_with_the_worst_values_found(
    exports: Exports, options: dict[str, str], tmp_path: Path
) -> None:
    """The bounds, computed here from the frozen model, which the certificate does not see."""
    case = exports.resnet()
    lines = {line.name: line for line in Patch(case, tmp_path / "model.onnx", **options).certify()}
    layers = {name: m for name, m in case.frozen.named_modules() if isinstance(m, FrozenLayer)}
    sums, products = {}, {}
    for name, layer in layers.items():
        weight = expected_codes(case.frozen)[name].astype(np.int64)
        largest = max(int(layer.x.high), int(layer.x.zero_point))
        total = np.abs(weight).reshape(len(weight), -1).sum(1) * largest
        sums[name] = int((total + np.abs(layer.bias.numpy().astype(np.int64))).max())
        products[name] = int(2 * largest * np.abs(weight).max())
    assert (lines["int32"].worst, lines["int32"].bound) == (max(sums.values()), 2**31 - 1)
    assert sums[lines["int32"].where] == lines["int32"].worst
    assert (lines["int16"].worst, lines["int16"].bound) == (max(products.values()), 32767)
    assert products[lines["int16"].where] == lines["int16"].worst
    rescales = {
        name
        for name, module in case.frozen.named_modules()
        if isinstance(module, FrozenAdd | FrozenRescale | FrozenGlobalAveragePool)
    }
    assert lines["ties"].where in rescales
    assert 0 < lines["ties"].worst < lines["ties"].bound == 1
    for name in ("float", "weights"):
        assert (lines[name].worst, lines[name].bound, lines[name].where) == (0, 0, "")


def test_a_bias_that_could_overflow_int32(patch: Patch) -> None:
    node = patch.node(CONV)
    bias = patch.array(node.input[8])
    room = 2**31 - 1 - 15 * int(np.abs(patch.codes[CONV].astype(np.int64)).reshape(len(bias), -1).sum(1)[3])
    bias[3] = -room
    patch.set_input(node, 8, bias)
    (int32, *_) = patch.certify()  # the bound itself is allowed
    assert (int32.worst, int32.where) == (2**31 - 1, CONV)
    bias[3] -= 1
    patch.set_input(node, 8, bias)
    assert "'int32' fails at layer1.0.conv2: 2147483648 is above 2147483647" in patch.refusal()


@pytest.mark.parametrize(("name", "index"), [("conv1", 3), ("fc", 3)])
def test_weights_of_127_under_8_bit_activations(patch: Patch, name: str, index: int) -> None:
    node = patch.node(name)
    weight = patch.array(node.input[index])
    weight.flat[0] = 127
    patch.set_input(node, index, weight)
    patch.codes[name] = weight
    assert f"'int16' fails at {name}: 64770 is above 32767" in patch.refusal()


def test_the_clip_in_front_of_a_layer_counts(patch: Patch) -> None:
    """Weights of 126 are allowed with 4-bit codes, but not if codes may exceed 15."""
    assert np.abs(patch.codes["layer2.0.conv2"]).max() == 126
    clip = patch.node("layer2.0.conv1_clip")
    patch.set_input(clip, 2, np.uint8(255))
    assert "'int16' fails at layer2.0.conv2: 64260 is above 32767" in patch.refusal()


def test_an_addition_whose_results_can_be_ties(patch: Patch) -> None:
    node = patch.node("add_1")
    step = patch.array(node.input[6])
    patch.set_input(node, 1, step / np.float32(2))
    patch.set_input(node, 4, step / np.float32(4))
    assert "'ties' fails at add_1:" in patch.refusal()


def test_a_requantization_whose_results_can_be_ties(patch: Patch) -> None:
    node = patch.node("intervals.layer2_0_conv1")
    patch.set_input(node, 1, patch.array(node.input[6]) / np.float32(16))
    patch.set_input(node, 4, patch.array(node.input[6]) / np.float32(4))
    assert "'ties' fails at intervals.layer2_0_conv1:" in patch.refusal()


def test_a_pooling_whose_results_can_be_ties(patch: Patch) -> None:
    node = patch.node("pool")
    patch.set_input(node, 1, patch.array(node.input[3]))  # the mean of 4 codes as it is: quarters and halves
    assert "'ties' fails at pool:" in patch.refusal()


def _insert(patch: Patch, source: str, op_type: str, *constants: str) -> None:
    """Put a float operator between codes and their readers."""
    scale, zero_point = patch.node(CONV).input[6:8]
    readers = [node for node in patch.model.graph.node if source in node.input]
    position = list(patch.model.graph.node).index(readers[0])
    new = [
        helper.make_node("DequantizeLinear", [source, scale, zero_point], ["real"], name="planted_dequantize"),
        helper.make_node(op_type, ["real", *constants], ["changed"], name="planted"),
        helper.make_node("QuantizeLinear", ["changed", scale, zero_point], ["codes"], name="planted_quantize"),
    ]
    for reader in readers:
        for index, name in enumerate(reader.input):
            if name == source:
                reader.input[index] = "codes"
    for offset, node in enumerate(new):
        patch.model.graph.node.insert(position + offset, node)


@pytest.mark.parametrize("op_type", ["Relu", "Erf", "Tanh"])
def test_a_float_operator_between_input_and_logits(patch: Patch, op_type: str) -> None:
    _insert(patch, CONV, op_type)
    assert "'float' fails at" in (message := patch.refusal())
    assert "planted" in message


def test_a_float_addition_between_input_and_logits(patch: Patch) -> None:
    patch.model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "tenth"))
    _insert(patch, CONV, "Add", "tenth")
    assert "'float' fails at" in (message := patch.refusal())
    assert "planted" in message


def test_a_gemm_that_is_left_in_float(exports: Exports, tmp_path: Path) -> None:
    """Without explicit zero points, ONNX Runtime computes a QDQ Gemm in float."""
    patch = Patch(exports.resnet(), tmp_path / "model.onnx", format="qdq", weights="int8")
    for source in patch.node("fc").input[:2]:
        (dequantize,) = [node for node in patch.model.graph.node if source in node.output]
        del dequantize.input[2]
    assert "'float' fails at" in (message := patch.refusal())
    assert "fc" in message


@pytest.mark.parametrize("options", [{}, {"format": "qdq"}, {"weights": "int8"}])
def test_one_changed_weight_code(exports: Exports, options: dict[str, str], tmp_path: Path) -> None:
    patch = Patch(exports.resnet(), tmp_path / "model.onnx", **options)
    stored = f"{CONV}_weight" if options.get("weights") == "int8" else f"{CONV}_weight_packed"
    (tensor,) = [tensor for tensor in patch.model.graph.initializer if tensor.name == stored]
    raw = bytearray(tensor.raw_data)
    raw[7] ^= 1
    tensor.raw_data = bytes(raw)
    assert f"'weights' fails at {CONV}: 1 is above 0" in patch.refusal()


def test_a_layer_too_many_or_too_few(patch: Patch) -> None:
    surplus = patch.codes.copy()
    del patch.codes[CONV]
    assert f"'weights' fails at {CONV} (a layer of the file or of the model only)" in patch.refusal()
    patch.codes = {**surplus, "ghost": surplus[CONV]}
    assert "'weights' fails at ghost (a layer of the file or of the model only)" in patch.refusal()


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_what_runs_are_the_integer_operators_of_the_qlinear_format(
    exports: Exports, format_: str, tmp_path: Path
) -> None:
    """In QDQ, too: nothing is dequantized, and weights were unpacked on loading the file."""
    executed = executed_operators(exports.resnet().export(tmp_path / "model.onnx", format=format_))
    names: Callable[[str], int] = [op for op, _ in executed].count
    counts = {op: names(op) for op in {op for op, _ in executed} - {"Transpose"}}
    assert counts == {
        "QLinearConv": 9,
        "QLinearAdd": 6,
        "Clip": 6,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }
