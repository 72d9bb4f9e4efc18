"""Lowering to integer operators: the result for each node of the captured graph, operand by operand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from qil_deploy.export.capture import capture
from qil_deploy.export.emitter import MICROSOFT_DOMAIN, QIL_DOMAIN
from qil_deploy.export.passes.lower_to_qlinear import clip, offset_operand
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.integers.frozen_modules import FrozenAdd, FrozenGlobalAveragePool, FrozenRescale

from .rewriting import lowered, replacement

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports


def scalar(value: ir.Value | None) -> Any:  # noqa: ANN401 - a float or an integer
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().item()


@pytest.fixture
def case(exports: Exports) -> Case:
    return exports.resnet()


@pytest.fixture
def nodes(case: Case) -> dict[str, ir.Node]:
    model = lowered(capture(case.frozen, case.preprocessing, "float"))
    return {str(node.name): node for node in model.graph}


def test_nothing_is_left_of_the_captured_domain_but_weights(nodes: dict[str, ir.Node]) -> None:
    left = {node.op_type for node in nodes.values() if node.domain == QIL_DOMAIN}
    assert left == {"Weight"}
    microsoft = {node.op_type for node in nodes.values() if node.domain == MICROSOFT_DOMAIN}
    assert microsoft == {"QGemm", "QLinearAdd", "QLinearGlobalAveragePool"}


def test_a_convolution(case: Case, nodes: dict[str, ir.Node]) -> None:
    for name in ("conv1", "layer2.0.conv1", "layer2.0.downsample.0"):
        module = case.frozen.get_submodule(name)
        assert isinstance(module, FrozenLayer)
        assert module.y is not None
        node = nodes[name]
        assert node.op_type == "QLinearConv"
        assert len(node.inputs) == 9
        assert scalar(node.inputs[1]) == float(module.x.scale)
        assert scalar(node.inputs[2]) == int(module.x.zero_point)
        assert scalar(node.inputs[6]) == float(module.y_step)
        assert scalar(node.inputs[7]) == int(module.y.zero_point)
        assert list(node.attributes["kernel_shape"].as_ints()) == list(module.weight_codes.shape[2:])


def test_the_classifier_has_no_output_grid(nodes: dict[str, ir.Node]) -> None:
    assert (nodes["fc"].op_type, len(nodes["fc"].inputs)) == ("QGemm", 7)
    assert nodes["fc"].attributes["transB"].as_int() == 1


def test_an_addition(case: Case, nodes: dict[str, ir.Node]) -> None:
    module = case.frozen.get_submodule("add_1")
    assert isinstance(module, FrozenAdd)
    node = nodes["add_1"]
    assert [scalar(node.inputs[index]) for index in (2, 5, 7)] == [
        int(module.a.zero_point),
        int(module.b.zero_point),
        int(module.y.zero_point),
    ]
    step = scalar(node.inputs[6])
    assert step == float(module.y.scale)
    for index, numerator in zip((1, 4), module.numerators, strict=True):
        expected = np.float32(step * int(numerator) / int(module.denominator))
        assert np.float32(scalar(node.inputs[index])) == expected


def test_a_requantization_adds_minus_the_lower_threshold(case: Case, nodes: dict[str, ir.Node]) -> None:
    offsets = set()
    for name, module in case.frozen.named_modules():
        if not isinstance(module, FrozenRescale):
            continue
        node = nodes[name]
        assert node.op_type == "QLinearAdd"
        step, constant, zero_point = (scalar(node.inputs[index]) for index in (4, 3, 5))
        offset = int(module.offset_numerator) / int(module.denominator) * float(module.y_step)
        np.testing.assert_allclose((constant - zero_point) * step, -offset, rtol=2**-23, atol=0)
        offsets.add(np.sign(offset))
    assert offsets == {-1, 1}


@pytest.mark.parametrize(("offset", "code", "zero_point"), [(0.25, 0, 1), (-0.25, 1, 0)])
def test_the_operand_of_an_offset(offset: float, code: int, zero_point: int) -> None:
    node = ir.node("Rescale", [], attributes={"offset": offset}, name="r")
    values = offset_operand(replacement()[0], node)
    assert [scalar(value) for value in values] == [code, 0.25, zero_point]


def test_the_operand_of_no_offset_is_zero() -> None:
    code, scale, zero_point = map(
        scalar, offset_operand(replacement()[0], ir.node("Rescale", [], attributes={"offset": 0.0}, name="r"))
    )
    assert (code - zero_point) * scale == 0
    assert scale > 0  # a scale of zero is none


def test_pooling(case: Case, nodes: dict[str, ir.Node]) -> None:
    module = case.frozen.get_submodule("pool")
    assert isinstance(module, FrozenGlobalAveragePool)
    node = nodes["pool"]
    assert node.attributes["channels_last"].as_int() == 0
    ratio = scalar(node.inputs[1]) / (module.window * scalar(node.inputs[3]))
    np.testing.assert_allclose(ratio, int(module.numerator) / int(module.denominator), rtol=2**-22, atol=0)


@pytest.mark.parametrize(
    ("limits", "clipped"), [((0, 15), True), ((0, 254), True), ((3, 255), True), ((0, 255), False), (None, False)]
)
def test_a_clip_only_where_uint8_does_not_saturate(limits: tuple[int, int] | None, clipped: bool) -> None:
    new, tape = replacement()
    attributes = {} if limits is None else {"low": limits[0], "high": limits[1]}
    codes = ir.Value(name="layer")
    layer = ir.node("Conv", [], attributes=attributes, name="layer", outputs=[ir.Value(name="layer")])
    result = clip(new, layer, codes)
    assert result.name == "layer"
    assert (result is codes) == (not clipped)
    if clipped:
        (node,) = tape.nodes
        assert (node.op_type, node.name, codes.name) == ("Clip", "layer_clip", "layer_unclipped")
        assert tuple(scalar(value) for value in node.inputs[1:]) == limits
