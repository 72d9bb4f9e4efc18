"""Additions and rescalings as kernel library operators: which are rewritten, the same codes, files that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import CertificateError, ModelFileError
from qil_deploy.export.certify import certify
from qil_deploy.export.emitter import QIL_DOMAIN, Emitter, array_of
from qil_deploy.export.export import expected_codes
from qil_deploy.export.passes.kernel_additions import LowBitRescale, ResidualAdd
from qil_deploy.export.passes.replacement import inputs_of
from qil_deploy.onnx_io import LOW_BIT_CONV, LOW_BIT_RESCALE, RESIDUAL_ADD, TERNARY_CONV, read_metadata, read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.doctor import diagnose

from .parts_of_models import changed_file, function_of, node_of
from .rewriting import rewritten

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports


class Blocks(nn.Module):
    """Two residual blocks, the second of which halves the map, and a bottleneck of 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.third = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x).relu()
        x = (self.first(x) + x).relu()
        x = (self.second(x) + self.shortcut(x)).relu()
        x = (self.third(x) + x).relu()
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def case(exports: Exports) -> Case:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16)).astype(np.uint8)
    preprocessing = Preprocessing(channels=3, height=16, width=16, scale=0.02, zero_point=100)
    return exports.case(Blocks(), QuantConfig(weight_bits=2, activation_bits=2), images, preprocessing)


def test_every_code_and_logit_is_as_before(case: Case, exports: Exports, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    exports.check_equal(case, path, kernels=True)
    plain, found = read_model(case.export(tmp_path / "plain.onnx")), read_model(path)
    expected, actual = IntegerReference(plain).run_all(case.images), IntegerReference(found).run_all(case.images)
    assert {"add", "add_1", "add_2"} <= set(actual)
    for name in actual:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)
    made = {name: node.op_type for node in found.nodes for name in node.outputs}
    read = {node.name: [made.get(name) for name in node.inputs[:1]] for node in found.nodes}
    # The bottleneck's 1x1 convolutions are ONNX Runtime's own on x86, channels last, and so is the sum behind them.
    assert [made[name] for name in ("add", "add_1", "add_2")] == [RESIDUAL_ADD, RESIDUAL_ADD, "QLinearAdd"]
    assert read["first.0"] == read["second.0"] == read["shortcut"] == read["third.0"] == [LOW_BIT_RESCALE]
    rewritten_names = [name for name, operator in made.items() if operator in (RESIDUAL_ADD, LOW_BIT_RESCALE)]
    assert set(rewritten_names) <= set(read_metadata(found)["passes"]["kernels"])
    known = {value.name: value.type.tensor_type.elem_type for value in onnx.load(path).graph.value_info}
    types = {name: kind for name, kind in known.items() if name in made}
    assert types == dict.fromkeys(rewritten_names, onnx.TensorProto.UINT8)  # which ONNX's checker asks for


def test_the_certificate_is_that_of_the_file_without(case: Case, tmp_path: Path) -> None:
    plain, found = case.export(tmp_path / "plain.onnx"), case.export(tmp_path / "model.onnx", kernels=True)
    codes = dict(expected_codes(case.frozen))
    lines = [{line.name: line for line in certify(path, codes)} for path in (plain, found)]
    assert lines[0] == lines[1]
    assert lines[1]["ties"].worst > 0


def test_sums_near_ties_are_not_certified(case: Case, exported: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for operator in (RESIDUAL_ADD, LOW_BIT_RESCALE):
        model = onnx.load_from_string(exported)
        name = node_of(model, operator).input[6]
        scale = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == name)
        set_constant(model, operator, 1, np.float32(scale / 2))
        node_of(model, operator).input[4] = name
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CertificateError, match=f"ties.*{node_of(model, operator).name}"):
            certify(path, dict(expected_codes(case.frozen)))


# ---- Which are rewritten


def graph(
    op_type: str, readers: tuple[str, ...] = (TERNARY_CONV,), made_by: str = TERNARY_CONV, **changed: object
) -> ir.Model:
    """A graph of one `qil` node that adds or rescales, after a node of some operator and before others."""
    emitter = Emitter()
    x = ir.Value(name="x", shape=ir.Shape(["n", 4, 6, 6]), type=ir.TensorType(ir.DataType.UINT8))
    domain = "" if made_by in ("MaxPool", "QLinearConv") else "qil.deploy"
    sources = [emitter.op(made_by, [x], "made", domain=domain)]
    grids = {"y_scale": 0.5, "y_zero_point": 0}
    if op_type == "Add":
        sources.append(emitter.op("QLinearConv", [x], "other"))
        grids |= {"a_scale": 0.25, "a_zero_point": 128, "b_scale": 0.125, "b_zero_point": 3}
    else:
        grids |= {"x_scale": 0.25, "x_zero_point": 128, "offset": -0.5, "low": 1, "high": 3}
    kept = {name: value for name, value in (grids | changed).items() if value is not None}
    y = emitter.op(op_type, sources, "y", domain=QIL_DOMAIN, attributes=kept)
    ends = [
        emitter.op(reader, [y], f"z{i}", domain="" if reader == "QLinearConv" else "qil.deploy")
        for i, reader in enumerate(readers)
    ]
    return emitter.model([x], ends or [y], {"": 13, QIL_DOMAIN: 1}, ir_version=7)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph("Add"), None),
        (graph("Add", ("QLinearConv",)), None),
        (graph("Add", ()), None),
        (graph("Add", low=0, high=255), None),
        (graph("Add", low=0, high=15), "its sums are clipped to fewer bits"),
        (graph("Add", low=1, high=255), "its sums are clipped to fewer bits"),
        (graph("Add", made_by=LOW_BIT_CONV), "no TernaryConv makes one of the codes that it adds"),
        (graph("Add", made_by="QLinearConv"), "no TernaryConv makes one of the codes that it adds"),
    ],
)
def test_sums_of_ternary_convolutions_are_rewritten(model: ir.Model, reason: str | None) -> None:
    changed, notes = rewritten(model, ResidualAdd())
    if reason is not None:
        assert notes.left_alone == {reason: ["y"]}
        return
    node = next(node for node in changed.graph if node.op_type == RESIDUAL_ADD)
    assert (node.domain, notes.rewritten, len(node.attributes)) == ("qil.deploy", ["y"], 0)
    assert [value.name for value in (node.inputs[0], node.inputs[3]) if value is not None] == ["made", "other"]
    constants = [array_of(value).item() for value in (*inputs_of(node)[1:3], *inputs_of(node)[4:])]
    assert constants == [0.25, 128, 0.125, 3, 0.5, 0]


_ELSEWHERE = "no TernaryConv makes the codes that it rescales, or reads all that it makes"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph("Rescale"), None),
        (graph("Rescale", made_by="MaxPool"), None),
        (graph("Rescale", (TERNARY_CONV, TERNARY_CONV), made_by="QLinearConv"), None),
        (graph("Rescale", ("QLinearConv",)), None),
        (graph("Rescale", (), made_by=RESIDUAL_ADD), None),
        (graph("Rescale", ("QLinearConv",), made_by="MaxPool"), _ELSEWHERE),
        (graph("Rescale", (LOW_BIT_CONV,), made_by=LOW_BIT_CONV), _ELSEWHERE),
        (graph("Rescale", (TERNARY_CONV, LOW_BIT_CONV), made_by="MaxPool"), _ELSEWHERE),
        (graph("Rescale", (), made_by="MaxPool"), _ELSEWHERE),
        (graph("Rescale", low=None, high=None), "it makes codes of 8 bits"),
        (graph("Rescale", low=0, high=255), "it makes codes of 8 bits"),
    ],
)
def test_rescalings_around_ternary_convolutions_are_rewritten(model: ir.Model, reason: str | None) -> None:
    changed, notes = rewritten(model, LowBitRescale())
    if reason is not None:
        assert notes.left_alone == {reason: ["y"]}
        return
    node = next(node for node in changed.graph if node.op_type == LOW_BIT_RESCALE)
    assert (node.domain, notes.rewritten, len(node.attributes)) == ("qil.deploy", ["y"], 0)
    assert [array_of(value).item() for value in inputs_of(node)[1:]] == [0.25, 128, 1, 0.5, 0, 0.5, 0, 1, 3]


# ---- Files that say something else than exports do


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return case.export(tmp_path_factory.mktemp("additions") / "model.onnx", kernels=True).read_bytes()


def set_constant(model: onnx.ModelProto, operator: str, index: int, value: np.generic) -> None:
    """Give the first node of an operator another constant input."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "changed"))
    node_of(model, operator).input[index] = "changed"


def multiplies(model: onnx.ModelProto) -> None:
    function_of(model, RESIDUAL_ADD).node[0].op_type = "QLinearMul"


def operands_swapped(model: onnx.ModelProto) -> None:
    inputs = function_of(model, RESIDUAL_ADD).node[0].input
    inputs[0], inputs[3] = inputs[3], inputs[0]


def standard_domain(model: onnx.ModelProto) -> None:
    function_of(model, RESIDUAL_ADD).node[0].domain = ""


def limits_swapped(model: onnx.ModelProto) -> None:
    clip = function_of(model, LOW_BIT_RESCALE).node[1]
    clip.input[1], clip.input[2] = clip.input[2], clip.input[1]


def no_clip(model: onnx.ModelProto) -> None:
    function = function_of(model, LOW_BIT_RESCALE)
    function.output[0] = function.node[0].output[0]
    del function.node[1]


def names_swapped(model: onnx.ModelProto) -> None:
    first, second = function_of(model, RESIDUAL_ADD), function_of(model, LOW_BIT_RESCALE)
    first.name, second.name = second.name, first.name


def an_attribute(model: onnx.ModelProto) -> None:
    node_of(model, RESIDUAL_ADD).attribute.append(onnx.helper.make_attribute("axis", 1))


def one_limit(model: onnx.ModelProto) -> None:
    del node_of(model, LOW_BIT_RESCALE).input[9]


def limits_of_two(model: onnx.ModelProto) -> None:
    set_constant(model, LOW_BIT_RESCALE, 9, np.array([3, 3], np.uint8))  # type: ignore[arg-type]  # that is the point


def codes_above_the_promise(model: onnx.ModelProto) -> None:
    set_constant(model, LOW_BIT_RESCALE, 9, np.uint8(4))


def gone(name: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.functions.remove(function_of(model, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (multiplies, "its function qil.deploy.ResidualAdd is not QLinearAdd, as exports write it"),
        (operands_swapped, "its function qil.deploy.ResidualAdd is not QLinearAdd"),
        (standard_domain, "its function qil.deploy.ResidualAdd is not QLinearAdd"),
        (limits_swapped, "its function qil.deploy.LowBitRescale is not QLinearAdd and Clip, as exports write it"),
        (no_clip, "its function qil.deploy.LowBitRescale is not QLinearAdd and Clip"),
        (names_swapped, "is not QLinearAdd"),
        (gone(RESIDUAL_ADD), "nodes qil.deploy.ResidualAdd, but not the function of that name"),
        (gone(LOW_BIT_RESCALE), "nodes qil.deploy.LowBitRescale, but not the function of that name"),
        (an_attribute, "attribute 'axis' of ResidualAdd is not supported"),
        (one_limit, "LowBitRescale"),
        (limits_of_two, "is not one constant number"),
        (codes_above_the_promise, "its x_high is \\[3\\], but the codes that it reads may reach 4"),
    ],
)
def test_other_files_are_refused(
    exported: bytes, change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    path = changed_file(exported, change, tmp_path)
    with pytest.raises(ModelFileError, match=message):
        IntegerReference(read_model(path)).run(np.zeros((1, 3, 16, 16), np.uint8))


def test_doctor_finds_ties_in_sums(exported: bytes, tmp_path: Path) -> None:
    model, path = onnx.load_from_string(exported), tmp_path / "model.onnx"
    path.write_bytes(exported)
    assert "addition-ties" not in {finding.kind for finding in diagnose(path).findings}
    scale = next(each for each in model.graph.initializer if each.name == node_of(model, RESIDUAL_ADD).input[6])
    set_constant(model, RESIDUAL_ADD, 1, np.float32(numpy_helper.to_array(scale) / 2))
    path.write_bytes(model.SerializeToString())
    (finding,) = [finding for finding in diagnose(path).findings if finding.kind == "addition-ties"]
    assert "add" in str(finding)
