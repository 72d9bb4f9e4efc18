"""Lowering to QDQ: the patterns that ONNX Runtime fuses, with all inputs it requires."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qil_deploy.export.capture import capture
from qil_deploy.export.emitter import QIL_DOMAIN
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference

from .rewriting import lowered

if TYPE_CHECKING:
    from tests.export.conftest import Exports

FLOAT_OPERATORS = ("Conv", "Gemm", "Add", "GlobalAveragePool")


@pytest.fixture
def model(exports: Exports) -> ir.Model:
    case = exports.resnet()
    return lowered(capture(case.frozen, case.preprocessing, "uint8"), "qdq")


def test_nothing_is_left_of_the_captured_domain_but_weights(model: ir.Model) -> None:
    assert {node.op_type for node in model.graph if node.domain == QIL_DOMAIN} == {"Weight"}
    assert {node.domain for node in model.graph} == {"", QIL_DOMAIN}


def test_zero_points_are_always_written_out(model: ir.Model) -> None:
    grids = [node for node in model.graph if node.op_type in ("DequantizeLinear", "QuantizeLinear")]
    assert grids
    assert all(len(node.inputs) == 3 and None not in node.inputs for node in grids)


def test_float_operators_stand_between_dequantize_and_quantize(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type not in FLOAT_OPERATORS:
            continue
        for value in node.inputs:
            assert value is not None
            producer = value.producer()
            assert producer is not None
            assert producer.op_type == "DequantizeLinear", node.name
        readers = [use.node.op_type for use in node.outputs[0].uses()]
        assert readers == ([] if node.name == "fc" else ["QuantizeLinear"]), node.name


def test_a_bias_has_the_scale_of_the_products(model: ir.Model) -> None:
    """float32(x_scale * w_scale): otherwise ONNX Runtime would not add its integers unchanged."""

    def constant(node: ir.Node, index: int) -> np.ndarray:
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        return value.const_value.numpy()

    layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 10
    for layer in layers:
        x, w, bias = (value.producer() for value in layer.inputs if value is not None)
        assert x is not None
        assert w is not None
        assert bias is not None
        products = constant(x, 1).astype(np.float32) * constant(w, 1)
        np.testing.assert_array_equal(constant(bias, 1), products, strict=True)
        assert constant(bias, 0).dtype == constant(bias, 2).dtype == np.int32


def test_codes_have_the_names_of_the_qlinear_format(exports: Exports, tmp_path: Path) -> None:
    """So that intermediate codes of both can be compared by name."""
    case = exports.resnet()

    def fused(format_: str) -> list[tuple[str, tuple[str, ...]]]:
        graph = read_model(case.export(tmp_path / f"{format_}.onnx", format=format_))
        return [(node.op_type, node.outputs) for node in IntegerReference(graph).nodes]

    assert fused("qdq") == fused("qlinear")


def test_levels_without_fusion_compute_almost_the_same(exports: Exports, tmp_path: Path) -> None:
    """Float operators may occasionally round a code another way; a wrong scale or zero point would be far off."""
    case = exports.resnet()
    model = onnx.load(case.export(tmp_path / "model.onnx", format="qdq"))
    exact = exports.run_runtime(model, case.images)["logits"]
    for level in ("disabled", "basic"):
        found = exports.run_runtime(model, case.images, level)["logits"]
        np.testing.assert_allclose(found, exact, rtol=0, atol=0.1 * np.ptp(exact))
