"""`doctor`: every finding and its absence on small graphs, and files that are odd, damaged or made by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from qil_deploy.commands.doctor import doctor_command
from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests import read_report
from qil_deploy.runtime_tests.doctor import Diagnosis, Finding, diagnose

WriteModel = Callable[..., Path]
Constants = Mapping[str, NDArray[Any] | np.generic]

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "elsewhere" : 1]>\n'
# Codes x of 2 channels become codes y of 3, in a QDQ convolution that ONNX Runtime fuses.
CONVOLUTION = """
    x_value = DequantizeLinear(x, x_scale, x_zero)
    w_value = DequantizeLinear<axis = 0>(w, w_scale, w_zero)
    sum = Conv(x_value, w_value)
    y = QuantizeLinear(sum, y_scale, y_zero)
"""


def constants(**changes: Any) -> dict[str, NDArray[Any] | np.generic]:  # noqa: ANN401 - arrays of any type
    """Return the constants of `CONVOLUTION`, some of them replaced or added."""
    return {
        "x_scale": np.float32(0.1),
        "x_zero": np.uint8(0),
        "w": np.arange(-27, 27, dtype=np.int8).reshape(3, 2, 3, 3),
        "w_scale": np.array([0.1, 0.2, 0.3], np.float32),
        "w_zero": np.zeros(3, np.int8),
        "y_scale": np.float32(2),
        "y_zero": np.uint8(0),
        **changes,
    }


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """Return a function that writes a graph of one input and one output and returns its findings by kind."""

    def check(
        body: str, values: Constants, x: str = "uint8[1,2,8,8] x", y: str = "uint8[1,3,6,6] y"
    ) -> dict[str, Finding]:
        model = onnx.parser.parse_model(f"{HEADER}graph ({x}) => ({y}) {{{body}}}")
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
        )
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return by_kind(path)

    return check


def by_kind(path: Path) -> dict[str, Finding]:
    return {finding.kind: finding for finding in diagnose(path).findings}


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
@pytest.mark.parametrize("input_", ["uint8", "float"])
def test_a_clean_model_has_no_findings(write_model: WriteModel, format_: str, input_: str) -> None:
    diagnosis = diagnose(write_model(format=format_, input=input_))
    assert diagnosis.findings == ()
    assert diagnosis.loads
    assert diagnosis.quantized
    assert {"QLinearConv", "QLinearAdd"} < {count.operator for count in diagnosis.kernels}


def test_a_fused_convolution_has_no_findings(check: Callable[..., dict[str, Finding]]) -> None:
    assert check(CONVOLUTION, constants()) == {}


def test_a_float_model_is_a_note(write_model: WriteModel) -> None:
    diagnosis = diagnose(write_model(format="float", input="float"))
    assert [(finding.kind, finding.severity) for finding in diagnosis.findings] == [("not-quantized", "note")]
    assert diagnosis.healthy


@pytest.mark.parametrize("zero", [np.uint8(128), np.int8(0)])
def test_int8_activations(check: Callable[..., dict[str, Finding]], zero: np.generic) -> None:
    x, y = f"{zero.dtype}[1,2,8,8] x", f"{zero.dtype}[1,3,6,6] y"
    findings = check(CONVOLUTION, constants(x_zero=zero, y_zero=zero), x, y)
    assert ("s8s8" in findings) is (zero.dtype == np.int8)
    if zero.dtype == np.int8:
        assert (findings["s8s8"].severity, findings["s8s8"].where) == ("slow", ("Conv 'sum'",))
    else:
        assert findings == {}


def test_batchnorm_between_codes_is_an_island_of_float(check: Callable[..., dict[str, Finding]]) -> None:
    body = CONVOLUTION.replace("y = ", "normed = BatchNormalization(sum, gain, gain, gain, gain)\n y = ")
    findings = check(body.replace("(sum, y_scale", "(normed, y_scale"), constants(gain=np.ones(3, np.float32)))
    assert findings.keys() == {"batchnorm", "float-island", "qdq-unfused"}
    assert findings["batchnorm"].where == ("BatchNormalization 'normed' after Conv 'sum'",)
    assert findings["float-island"].where == (
        "Conv 'sum', BatchNormalization 'normed', between DequantizeLinear 'x_value' and QuantizeLinear 'y'",
    )
    assert findings["qdq-unfused"].where == (
        "Conv 'sum': its result goes to BatchNormalization 'normed', not to QuantizeLinear",
    )
    assert {finding.severity for finding in findings.values()} == {"slow"}


def test_why_an_operator_did_not_fuse(check: Callable[..., dict[str, Finding]]) -> None:
    findings = check(CONVOLUTION, constants(y_zero=np.int8(0)), y="int8[1,3,6,6] y")
    (where,) = findings["qdq-unfused"].where
    assert where == "Conv 'sum': it reads uint8 codes and makes int8 ones, where all must be of one type"
    findings = check(CONVOLUTION[: CONVOLUTION.index("y = ")], constants(), y="float[1,3,6,6] sum")
    assert findings["qdq-unfused"].where == ("Conv 'sum': its result is an output of the model, not quantized",)


@pytest.mark.parametrize(("bits", "cast"), [(4, False), (4, True), (2, False), (2, True)])
def test_packed_weights(tmp_path: Path, bits: int, cast: bool) -> None:
    body = CONVOLUTION.replace("(w, w_scale, w_zero)", "(wide, w_scale, w_zero)" if cast else "(w, w_scale)")
    kind = {4: TensorProto.INT4, 2: TensorProto.INT2}[bits]
    codes = (np.arange(54).reshape(3, 2, 3, 3) % 3 - 1).astype(helper.tensor_dtype_to_np_dtype(kind))
    before = "wide = Cast<to = 3>(w)\n" if cast else ""
    text = f"{HEADER}graph (uint8[1,2,8,8] x) => (uint8[1,3,6,6] y) {{{before}{body}}}"
    model = onnx.parser.parse_model(text.replace('"" : 21', '"" : 25').replace("ir_version: 10", "ir_version: 13"))
    values = constants(w=codes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    path = tmp_path / "packed.onnx"
    path.write_bytes(model.SerializeToString())
    findings = by_kind(path)
    assert (f"int{bits}-dequantize" in findings) is not cast
    if cast:
        assert findings == {}
    else:
        assert findings[f"int{bits}-dequantize"].where == ("DequantizeLinear 'w_value' before Conv 'sum'",)
        assert (bits == 2) is ("does-not-load" in findings)
        if bits == 2:
            assert findings["int2-dequantize"].severity == "blocks"
            assert "It loads with graph optimizations disabled" in findings["does-not-load"].remedy


def test_one_scale_for_all_channels_is_a_note(check: Callable[..., dict[str, Finding]]) -> None:
    findings = check(CONVOLUTION.replace("<axis = 0>", ""), constants(w_scale=np.float32(0.1), w_zero=np.int8(0)))
    assert [(kind, finding.severity) for kind, finding in findings.items()] == [("per-tensor-weights", "note")]
    assert findings["per-tensor-weights"].where == ("Conv 'sum'",)


def test_dynamic_quantization(check: Callable[..., dict[str, Finding]]) -> None:
    body = "codes, scale, zero = DynamicQuantizeLinear(x)\n y = ConvInteger(codes, w, zero)"
    findings = check(body, {"w": constants()["w"]}, "float[1,2,8,8] x", "int32[1,3,6,6] y")
    assert findings["dynamic-quantization"].where == ("DynamicQuantizeLinear 'codes'", "ConvInteger 'y'")


@pytest.mark.parametrize(("largest", "clip", "possible"), [(64, 255, False), (65, 255, True), (127, 15, False)])
def test_saturation(check: Callable[..., dict[str, Finding]], largest: int, clip: int, possible: bool) -> None:
    body = "clipped = Clip(x, low, high)\n" + CONVOLUTION.replace("(x, x_scale", "(clipped, x_scale")
    weights = np.full((3, 2, 3, 3), largest, np.int8)
    findings = check(body, constants(w=weights, low=np.uint8(0), high=np.uint8(clip)))
    assert findings.keys() == ({"int16-saturation"} if possible else set())
    if possible:
        assert findings["int16-saturation"].severity == "inexact"
        assert findings["int16-saturation"].where[0].endswith("sums up to 33,150")


@pytest.mark.parametrize(("bias", "possible"), [(2**31 - 1, True), (2**30, False)])
def test_overflow(check: Callable[..., dict[str, Finding]], bias: int, possible: bool) -> None:
    body = "y = QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias)"
    findings = check(body, constants(bias=np.full(3, bias, np.int32)))
    assert findings.keys() == ({"int32-overflow"} if possible else set())


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf])
def test_scales_that_are_no_positive_numbers(check: Callable[..., dict[str, Finding]], scale: float) -> None:
    body = "y = QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)"
    findings = check(body, constants(w_scale=np.array([0.1, scale, 0.3], np.float32)))
    assert findings["bad-scale"].severity == "inexact"
    assert "bad-scale" not in check(body, constants())


@pytest.mark.parametrize(("bits", "level", "given", "found"), [
    (4, 4, False, True), (4, 4, True, False), (4, 0, False, False), (2, 4, False, False),
])  # fmt: skip
def test_weights_without_zero_points(
    check: Callable[..., dict[str, Finding]], bits: int, level: int, given: bool, found: bool
) -> None:
    byte = sum(2 ** (bits - 1) << shift for shift in range(0, 8, bits))
    values = {
        "packed": np.zeros((3, 1, 16 * bits // 8), np.uint8),
        "scales": np.ones(3, np.float32),
        "zeros": np.full((3, 1), byte, np.uint8),
    }
    zeros = ", zeros" if given else ""
    attributes = f"N = 3, K = 16, bits = {bits}, block_size = 16, accuracy_level = {level}"
    body = f"y = com.microsoft.MatMulNBits<{attributes}>(x, packed, scales{zeros})"
    findings = check(body, values, x="float[1,16] x", y="float[1,3] y")
    assert ("rounding-by-machine" in findings) == found


@pytest.mark.parametrize("ties", [True, False])
def test_additions_that_meet_ties(write_model: WriteModel, ties: bool) -> None:
    findings = by_kind(write_model(ties=ties))
    assert findings.keys() == ({"addition-ties"} if ties else set())


@pytest.mark.parametrize(("ratio", "ties"), [(1.0, True), (4 * 61 / 4095, False)])
@pytest.mark.parametrize("operator", ["QLinearGlobalAveragePool", "QLinearAveragePool<kernel_shape = [2, 2]>"])
def test_pools_that_meet_ties(
    check: Callable[..., dict[str, Finding]], operator: str, ratio: float, ties: bool
) -> None:
    body = operator.replace("QLinear", "y = com.microsoft.QLinear", 1)
    values: Constants = {"s": np.float32(ratio), "one": np.float32(1), "zero": np.uint8(0)}
    findings = check(f"{body}(x, s, zero, one, zero)", values, "uint8[1,2,2,2] x", "uint8[1,2,1,1] y")
    assert findings.keys() == ({"pool-ties"} if ties else set())


def test_ends_in_float(check: Callable[..., dict[str, Finding]]) -> None:
    behind = CONVOLUTION + "value = DequantizeLinear(y, y_scale, y_zero)\n p = Softmax(value)"
    findings = check(behind, constants(), y="float[1,3,6,6] p")
    assert findings["float-end"].severity == "note"
    assert findings["float-end"].where == ("Softmax 'p', between DequantizeLinear 'value' and the output",)
    before = "big = Conv(image, first)\n x = QuantizeLinear(big, x_scale, x_zero)\n" + CONVOLUTION
    findings = check(before, constants(first=np.ones((2, 1, 1, 1), np.float32)), "float[1,1,8,8] image")
    assert findings.keys() == {"float-end"}
    assert findings["float-end"].severity == "slow"
    assert findings["float-end"].where == ("Conv 'big', between the input and QuantizeLinear 'x'",)


def test_an_operator_of_another_domain_does_not_load(check: Callable[..., dict[str, Finding]]) -> None:
    findings = check("y = elsewhere.Strange(x)", {})
    assert findings["does-not-load"].severity == "blocks"
    assert "Strange" in findings["does-not-load"].where[0]


def test_what_is_not_looked_into_is_said(tmp_path: Path) -> None:
    branch = "(float[1,3,6,6] {0}) {{ {0} = Identity(sum) }}"
    branches = f"then_branch = one () => {branch.format('a')}, else_branch = two () => {branch.format('b')}"
    body = CONVOLUTION.replace("y = ", f"chosen = If(yes)<{branches}>\n y = ").replace(
        "(sum, y_scale", "(chosen, y_scale"
    )
    model = onnx.parser.parse_model(f"{HEADER}graph (uint8[1,2,8,8] x, bool yes) => (uint8[1,3,6,6] y) {{{body}}}")
    values = constants()
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    path = tmp_path / "branches.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    finding = by_kind(path)["not-looked-into"]
    assert finding.severity == "note"
    assert any("is a subgraph" in sentence for sentence in finding.where)
    assert any("initializer 'w' is stored in another file" in sentence for sentence in finding.where)
    (tmp_path / "weights.bin").unlink()
    assert by_kind(path)["does-not-load"].severity == "blocks"


@settings(max_examples=40)
@given(st.data())
def test_damaged_files_are_diagnosed_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    model = onnx.parser.parse_model(f"{HEADER}graph (uint8[1,2,8,8] x) => (uint8[1,3,6,6] y) {{{CONVOLUTION}}}")
    values = constants()
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))]))
    try:
        assert isinstance(diagnose(path), Diagnosis)
    except ModelFileError as error:
        assert "damaged.onnx" in str(error)  # noqa: PT017 - either outcome is right


def call(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(doctor_command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        raise result.exception
    return result


def test_the_command_prints_writes_json_and_ends_with_0_or_1(write_model: WriteModel, tmp_path: Path) -> None:
    result = call(write_model(), "--json", tmp_path / "clean.json")
    assert result.exit_code == 0, result.output
    assert "Nothing holds this model back." in result.output
    assert read_report(tmp_path / "clean.json", Diagnosis) == diagnose(write_model())
    result = call(write_model(ties=True))
    assert result.exit_code == 1
    assert "inexact addition-ties" in result.output
    assert "Findings: 1 inexact." in result.output
    with pytest.raises(ModelFileError, match=r"absent\.onnx does not exist"):
        call(tmp_path / "absent.onnx")


@pytest.mark.parametrize("format_", ["QDQ", "QOperator"])
@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_files_of_onnx_runtimes_own_quantizer(
    tmp_path: Path, rng: np.random.Generator, format_: str, activations: str, reduce_range: bool
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    body = "a = Conv(x, w, b)\n r = Relu(a)\n p = GlobalAveragePool(r)\n f = Flatten(p)\n y = Gemm<transB = 1>(f, v)"
    model = onnx.parser.parse_model(f"{HEADER}graph (float[1,3,9,9] x) => (float[1,5] y) {{{body}}}")
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4)}
    values = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    images = iter([{"x": rng.standard_normal((1, 3, 9, 9), np.float32)} for _ in range(4)])
    path = tmp_path / "quantized.onnx"
    quantize_static(
        model,
        path,
        SimpleNamespace(get_next=lambda: next(images, None)),
        quant_format=QuantFormat[format_],
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )
    findings = by_kind(path)
    assert ("s8s8" in findings) is (activations == "QInt8")
    assert ("int16-saturation" in findings) is not reduce_range
    assert "pool-ties" in findings
    assert not findings.keys() & {"per-tensor-weights", "batchnorm", "float-end", "does-not-load", "not-looked-into"}
