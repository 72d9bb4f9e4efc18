"""Capture: one node for one module, with the attributes and tensors of the frozen modules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import UnsupportedModelError
from qil_deploy.export.capture import capture, node_names
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.integers.frozen_modules import FrozenAdd, FrozenGlobalAveragePool, FrozenRescale
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

PIXELS = Preprocessing(channels=2, height=8, width=8, scale=0.01, zero_point=50)


class Repeating(nn.Module):
    """Calls one MaxPool2d and one ReLU twice each; strides, padding, dilation and groups are all unusual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=1, padding=(2, 1))
        self.second = nn.Conv2d(4, 4, (1, 3), stride=(1, 2), padding=1, dilation=(1, 2), groups=2)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, stride=(1, 2), padding=(0, 1), ceil_mode=True)
        self.fc = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.first(x)))
        x = self.pool(self.relu(self.second(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


@pytest.fixture
def repeating(exports: Exports) -> Case:
    network = Repeating()
    network(torch.zeros(1, *PIXELS.shape))
    images = np.random.default_rng(0).integers(0, 256, (4, *PIXELS.shape), np.uint8)
    return exports.case(network, QuantConfig(), images, PIXELS)


def nodes_of(case: Case) -> dict[str, ir.Node]:
    model = capture(case.frozen, case.preprocessing, "float")
    return {str(node.name): node for node in model.graph}


def real(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float()


def integer(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()


def test_one_node_per_module_call(exports: Exports) -> None:
    case = exports.resnet()
    calls = [node for node in case.frozen.graph.nodes if node.op == "call_module"]
    assert list(nodes_of(case)) == [node_names(case.frozen)[call] for call in calls]
    without = capture(case.frozen, case.preprocessing, "uint8")
    assert [node.name for node in without.graph] == list(nodes_of(case))[1:]  # the image is codes already


def test_a_module_that_is_called_twice_names_its_nodes_after_the_calls(repeating: Case) -> None:
    names = list(node_names(repeating.frozen).values())
    assert len(set(names)) == len(names)
    assert names == ["input_quantizer", "first", "pool", "second", "pool_1", "flatten", "fc"]


def test_a_network_that_calls_a_pool_twice_is_exact(repeating: Case, exports: Exports, tmp_path: Path) -> None:
    for format_ in ("qlinear", "qdq"):
        exports.check_equal(repeating, tmp_path / "model.onnx", format=format_)


def test_windows(repeating: Case) -> None:
    nodes = nodes_of(repeating)

    def window(node: str, *names: str) -> list[list[int]]:
        return [list(nodes[node].attributes[name].as_ints()) for name in names]

    names = ("strides", "pads", "dilations")
    assert window("first", *names) == [[1, 1], [2, 1, 2, 1], [1, 1]]
    assert window("second", *names) == [[1, 2], [1, 1, 1, 1], [1, 2]]
    assert [integer(nodes[name], "group") for name in ("first", "second")] == [1, 2]
    assert window("pool_1", "kernel_shape", *names) == [[2, 2], [1, 2], [0, 1, 0, 1], [1, 1]]
    assert integer(nodes["pool"], "ceil_mode") == 1
    assert integer(nodes["flatten"], "axis") == 1


def test_layers_carry_the_tensors_of_the_frozen_modules(exports: Exports) -> None:
    case = exports.resnet(weight_bits=3)
    for name, node in nodes_of(case).items():
        if node.op_type not in ("Conv", "Gemm"):
            continue
        module = case.frozen.get_submodule(name)
        assert isinstance(module, FrozenLayer)
        tensors = (module.weight_codes, module.spread, module.bias, module.w_scale)
        for value, expected in zip(node.inputs[1:], tensors, strict=True):
            assert value is not None
            assert value.const_value is not None
            np.testing.assert_array_equal(value.const_value.numpy(), expected.numpy(), strict=True)
        assert integer(node, "weight_bits") == module.layer.weight_quantizer.bits
        assert real(node, "x_scale") == float(module.x.scale)
        assert integer(node, "x_zero_point") == int(module.x.zero_point)
        if module.y is None:
            assert "y_scale" not in node.attributes
        else:
            assert real(node, "y_scale") == float(module.y_step)
            assert (integer(node, "low"), integer(node, "high")) == module.y.limits()


def test_rescale_ratios_are_the_snapped_fractions(exports: Exports) -> None:
    """In float32 division: within one rounding of each scale and one of the quotient."""
    case = exports.resnet()
    checked = 0
    for name, node in nodes_of(case).items():
        module = case.frozen.get_submodule(name) if "." not in name or name.startswith("intervals") else None
        expected: list[tuple[str, float]] = []
        if isinstance(module, FrozenAdd):
            p_a, p_b = (int(p) for p in module.numerators)
            expected = [("a_scale", p_a / int(module.denominator)), ("b_scale", p_b / int(module.denominator))]
        elif isinstance(module, FrozenRescale):
            q = int(module.denominator)
            expected = [("x_scale", int(module.numerator) / q), ("offset", int(module.offset_numerator) / q)]
        elif isinstance(module, FrozenGlobalAveragePool):
            expected = [("x_scale", int(module.numerator) / int(module.denominator) * module.window)]
        for attribute, ratio in expected:
            found = np.float32(real(node, attribute)) / np.float32(real(node, "y_scale"))
            np.testing.assert_allclose(found, ratio, rtol=3 * 2**-24, atol=0)
            checked += 1
    assert checked == 3 * 2 + 3 * 2 + 1


@pytest.mark.parametrize("prepared", [True, False])
def test_a_model_that_is_not_frozen_is_refused(exports: Exports, prepared: bool) -> None:
    case = exports.resnet()
    model = case.prepared if prepared else fx.symbolic_trace(case.network)
    with pytest.raises(UnsupportedModelError, match="no part of a frozen model; freeze the model first"):
        capture(model, case.preprocessing, "uint8")
