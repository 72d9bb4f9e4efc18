"""Convolutions as TernaryConv and LowBitConv: unchanged codes without a library; exceptions; files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.export import ExportOptions
from qil_deploy.export.emitter import QIL_DOMAIN, Emitter, array_of
from qil_deploy.export.passes.low_bit_conv import LowBitConv
from qil_deploy.export.passes.replacement import inputs_of
from qil_deploy.onnx_io import (
    KERNEL_CONVOLUTIONS,
    KERNEL_OPERATORS,
    LOW_BIT_CONV,
    LOW_BIT_RESCALE,
    RESIDUAL_ADD,
    TERNARY_CONV,
    read_metadata,
    read_model,
)
from qil_deploy.reference import IntegerReference

from .parts_of_models import changed_file
from .rewriting import rewritten

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

BITS = [(2, 2), (3, 3), (4, 4)]


@pytest.fixture(params=BITS, ids=lambda bits: f"w{bits[0]}a{bits[1]}")
def case(request: pytest.FixtureRequest, exports: Exports) -> Case:
    weight_bits, activation_bits = request.param
    return exports.resnet(weight_bits=weight_bits, activation_bits=activation_bits)


@pytest.mark.parametrize("weights", ["packed", "int8"])
def test_every_code_and_logit_is_as_before(case: Case, exports: Exports, weights: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"format": "qlinear", "weights": weights, "input": "uint8"}
    exports.check_equal(case, tmp_path / "model.onnx", **options, kernels=True)
    plain = read_model(case.export(tmp_path / "plain.onnx", **options))
    found = read_model(tmp_path / "model.onnx")
    images = case.images[:2]
    expected, actual = IntegerReference(plain).run_all(images), IntegerReference(found).run_all(images)
    for name in actual:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)
    metadata = read_metadata(found)
    nodes = {node.name: node.op_type for node in found.nodes if node.op_type in KERNEL_OPERATORS}
    assert sorted(nodes) == sorted(metadata["passes"]["kernels"])
    is_looked_up = metadata["layers"][1]["weight_bits"] == 2
    names = [LOW_BIT_RESCALE, RESIDUAL_ADD, TERNARY_CONV] if is_looked_up else [LOW_BIT_CONV]
    assert sorted(set(nodes.values())) == names
    assert sorted(function.name for function in onnx.load(tmp_path / "model.onnx").functions) == names
    layers = [name for name, op_type in nodes.items() if op_type in KERNEL_CONVOLUTIONS]
    assert len(layers) == sum(layer["weight_bits"] <= 4 for layer in metadata["layers"])


def convolution(
    *, channels: int = 4, group: int = 1, largest: int = 1, size: int = 3, **changed: float | list[int] | None
) -> ir.Model:
    """A graph of one `qil.Conv` on codes 0..3, with some changes."""
    rng, emitter = np.random.default_rng(0), Emitter()
    x = ir.Value(name="x", shape=ir.Shape(["n", channels, 6, 6]), type=ir.TensorType(ir.DataType.UINT8))
    attributes: dict[str, Any] = {
        "x_scale": 1 / 3, "x_zero_point": 0, "x_high": 3, "y_scale": 0.2, "y_zero_point": 0, "low": 0, "high": 3,
        "weight_bits": 2, "kernel_shape": [size, size], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1],
        "group": group,
    } | changed  # fmt: skip
    constants = {
        "codes": rng.integers(-largest, largest, (4, channels // group, size, size), np.int8, endpoint=True),
        "spread": np.full(4, 127 // largest, np.int8),
        "bias": rng.integers(-50, 50, 4, np.int32),
        "w_scale": np.full(4, 0.01, np.float32),
    }
    operands = [x, *(emitter.constant(array, name) for name, array in constants.items())]
    kept = {name: value for name, value in attributes.items() if value is not None}
    y = emitter.op("Conv", operands, "y", domain=QIL_DOMAIN, attributes=kept)
    return emitter.model([x], [y], {"": 13, QIL_DOMAIN: 1}, ir_version=7)


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, TERNARY_CONV),
        ({"low": None, "high": None}, TERNARY_CONV),
        ({"x_high": 2}, TERNARY_CONV),
        ({"channels": 1500}, TERNARY_CONV),
        ({"channels": 2000}, LOW_BIT_CONV),  # sums pass 16 bits
        ({"x_high": 4}, LOW_BIT_CONV),
        ({"size": 1}, LOW_BIT_CONV),
        ({"size": 1, "strides": [2, 2]}, TERNARY_CONV),
        ({"largest": 2}, LOW_BIT_CONV),
        ({"largest": 7, "x_high": 15}, LOW_BIT_CONV),
        ({"group": 4}, LOW_BIT_CONV),
        ({"y_scale": None}, "its sums become floats, not codes"),
        ({"largest": 8}, "its weights have codes above 7, more than 4 bits"),
        ({"x_zero_point": 1}, "the codes it reads have a zero point other than 0"),
        ({"x_high": 16}, "the codes it reads reach 16, above 15"),
        ({"group": 2}, "it has groups of several channels"),
    ],
)
def test_layers_become_what_kernels_take_or_are_left_alone(changed: dict[str, Any], outcome: str) -> None:
    model, notes = rewritten(convolution(**changed), LowBitConv())
    if outcome in KERNEL_OPERATORS:
        assert notes.rewritten == ["y"]
        assert [node.op_type for node in model.graph if node.domain != QIL_DOMAIN] == [outcome]
        assert [array_of(value).item() for value in inputs_of(model.graph.node(-1))[-3:]] == [
            *((0, 255) if changed.get("low", 0) is None else (0, 3)),
            changed.get("x_high", 3),
        ]
    else:
        assert notes.left_alone == {outcome: ["y"]}
        assert [node.op_type for node in model.graph] == ["Conv"]


def test_kernels_are_for_codes_alone() -> None:
    with pytest.raises(ConfigError, match="kernels is True and format 'qdq'"):
        ExportOptions(format="qdq", kernels=True)
    with pytest.raises(ConfigError, match="kernels is 1; allowed are True and False"):
        ExportOptions(kernels=1)  # type: ignore[arg-type]  # that is the point


def test_files_without_kernels_have_no_function(exports: Exports, tmp_path: Path) -> None:
    model = onnx.load(exports.resnet(weight_bits=2, activation_bits=2).export(tmp_path / "model.onnx"))
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}


# ---- Files that say something else than exports do


@pytest.fixture(scope="module")
def exported(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    case = exports.resnet(weight_bits=2, activation_bits=2)
    return case.export(tmp_path_factory.mktemp("low_bit") / "model.onnx", kernels=True).read_bytes()


def first_call(model: onnx.ModelProto) -> onnx.NodeProto:
    calls: list[onnx.NodeProto] = [node for node in model.graph.node if node.op_type in KERNEL_CONVOLUTIONS]
    return calls[0]


def function_of(model: onnx.ModelProto) -> onnx.FunctionProto:
    functions: list[onnx.FunctionProto] = [each for each in model.functions if each.name == TERNARY_CONV]
    return functions[0]


def set_constant(model: onnx.ModelProto, index: int, value: np.generic | NDArray[Any]) -> None:
    """Give the first of them another constant input."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "other"))
    first_call(model).input[index] = "other"


def no_function(model: onnx.ModelProto) -> None:
    model.functions.remove(function_of(model))


def other_name(model: onnx.ModelProto) -> None:
    function_of(model).name = "Other"


def one_of_two_functions(model: onnx.ModelProto) -> None:
    first_call(model).op_type = LOW_BIT_CONV


def one_of_two_is_another(model: onnx.ModelProto) -> None:
    model.functions.append(function_of(model))
    model.functions[-1].name = LOW_BIT_CONV
    model.functions[-1].node[1].input[2] = "x_high"


def two_functions(model: onnx.ModelProto) -> None:
    model.functions.append(function_of(model))


def limits_swapped(model: onnx.ModelProto) -> None:
    clip = function_of(model).node[1]
    clip.input[1], clip.input[2] = clip.input[2], clip.input[1]


def clips_at_x_high(model: onnx.ModelProto) -> None:
    function_of(model).node[1].input[2] = "x_high"


def fixed_stride(model: onnx.ModelProto) -> None:
    stride = next(each for each in function_of(model).node[0].attribute if each.name == "strides")
    stride.ref_attr_name = ""
    stride.ints.extend([2, 2])


def strides_are_dilations(model: onnx.ModelProto) -> None:
    stride = next(each for each in function_of(model).node[0].attribute if each.name == "strides")
    stride.ref_attr_name = "dilations"


def default_group(model: onnx.ModelProto) -> None:
    function_of(model).attribute.remove("group")
    function_of(model).attribute_proto.append(onnx.helper.make_attribute("group", 2))


def another_node(model: onnx.ModelProto) -> None:
    function_of(model).node.add(op_type="Identity", input=["codes"], output=["more"])


def other_operator(model: onnx.ModelProto) -> None:
    function_of(model).node[0].op_type = "ConvInteger"


def other_operator_set(model: onnx.ModelProto) -> None:
    function_of(model).opset_import[0].version = 13


def other_version(model: onnx.ModelProto) -> None:
    next(opset for opset in model.opset_import if opset.domain == "qil.deploy").version = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_function, "nodes qil.deploy.TernaryConv, but not the function of that name"),
        (one_of_two_functions, "nodes qil.deploy.LowBitConv, but not the function of that name"),
        (one_of_two_is_another, "its function qil.deploy.LowBitConv is not QLinearConv and Clip"),
        (other_name, "model-local functions are not supported"),
        (other_version, "version \\[2\\] of qil.deploy"),
        *(
            (change, "is not QLinearConv and Clip, as exports write it")
            for change in (
                *(two_functions, limits_swapped, clips_at_x_high, fixed_stride, strides_are_dilations, default_group),
                *(another_node, other_operator, other_operator_set),
            )
        ),
    ],
)
def test_another_function_is_refused(
    exported: bytes, change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    path = changed_file(exported, change, tmp_path)
    with pytest.raises(ModelFileError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (11, np.uint8(2), "its x_high is \\[2\\], but the codes that it reads may reach 3"),
        (11, np.zeros(2, np.uint8), "its x_high is \\[0\\]"),
        (2, np.uint8(1), "a zero point\\) must be 0"),
        (5, np.ones(8, np.int8), "a zero point\\) must be 0"),
        (10, np.array([3, 3], np.uint8), "is not one constant number"),
    ],
)
def test_promises_that_do_not_hold_are_refused(
    exported: bytes, index: int, value: np.generic | NDArray[Any], message: str, tmp_path: Path
) -> None:
    model = onnx.load_from_string(exported)
    set_constant(model, index, value)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=message):
        IntegerReference(read_model(path)).run(np.zeros((1, 1, 8, 8), np.uint8))


def test_a_graph_saved_with_the_library_registered_is_refused(exported: bytes, tmp_path: Path) -> None:
    kernels = pytest.importorskip("qil_deploy_kernels", reason="qil-deploy-kernels is not installed: `make kernels`")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QIL_DEPLOY_KERNELS", "scalar")
        options.register_custom_ops_library(str(kernels.library_path()))
    onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    with pytest.raises(ModelFileError, match="ONNX Runtime leaves it out of a graph that it writes"):
        read_model(tmp_path / "optimized.onnx")
