"""`doctor` on small graphs, and on odd, damaged or foreign files; faults.py has one file per fault."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests import read_report
from qil_deploy.runtime_tests.doctor import Diagnosis, Finding, diagnose

from .graph_files import CONVOLUTION, Constants, X, Y, build_model, constants, write_graph

if TYPE_CHECKING:
    from tests.command_line import Outcome

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
WriteModel = Callable[..., Path]
Check = Callable[..., dict[str, Finding]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Return a function that writes a graph, as `write_graph` does, and returns its findings by kind."""

    def check(body: str, values: Constants, x: str = X, y: str = Y, **options: Any) -> dict[str, Finding]:  # noqa: ANN401
        return by_kind(write_graph(tmp_path / "model.onnx", body, values, x, y, **options))

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


def test_a_fused_convolution_has_no_findings(check: Check) -> None:
    assert check(CONVOLUTION, constants()) == {}


def test_a_float_model_is_a_note(write_model: WriteModel) -> None:
    diagnosis = diagnose(write_model(format="float", input="float"))
    assert [(finding.kind, finding.severity) for finding in diagnosis.findings] == [("not-quantized", "note")]
    assert diagnosis.healthy


@pytest.mark.parametrize("zero", [np.uint8(128), np.int8(0)])
def test_int8_activations(check: Check, zero: np.generic) -> None:
    x, y = f"{zero.dtype}[1,2,8,8] x", f"{zero.dtype}[1,3,6,6] y"
    findings = check(CONVOLUTION, constants(x_zero=zero, y_zero=zero), x, y)
    assert ("s8s8" in findings) is (zero.dtype == np.int8)
    if zero.dtype == np.int8:
        assert (findings["s8s8"].severity, findings["s8s8"].where) == ("slow", ("Conv 'sum'",))
    else:
        assert findings == {}


def test_batchnorm_between_codes_is_an_island_of_float(check: Check) -> None:
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


def test_why_an_operator_did_not_fuse(check: Check) -> None:
    findings = check(CONVOLUTION, constants(y_zero=np.int8(0)), y="int8[1,3,6,6] y")
    (where,) = findings["qdq-unfused"].where
    assert where == "Conv 'sum': it reads uint8 codes and makes int8 ones, where all must be of one type"
    findings = check(CONVOLUTION[: CONVOLUTION.index("y = ")], constants(), y="float[1,3,6,6] sum")
    assert findings["qdq-unfused"].where == ("Conv 'sum': its result is an output of the model, not quantized",)


@pytest.mark.parametrize(("bits", "cast"), [(4, False), (4, True), (2, False), (2, True)])
def test_packed_weights(tmp_path: Path, bits: int, cast: bool) -> None:
    body = CONVOLUTION.replace("(w, w_scale, w_zero)", "(wide, w_scale, w_zero)" if cast else "(w, w_scale)")
    stored, kind = {4: (TensorProto.INT4, "int4-dequantize"), 2: (TensorProto.INT2, "int2-dequantize")}[bits]
    codes = (np.arange(54).reshape(3, 2, 3, 3) % 3 - 1).astype(helper.tensor_dtype_to_np_dtype(stored))
    before = "wide = Cast<to = 3>(w)\n" if cast else ""
    path = write_graph(tmp_path / "packed.onnx", before + body, constants(w=codes), opset=25, ir_version=13)
    findings = by_kind(path)
    assert (kind in findings) is not cast
    if cast:
        assert findings == {}
    else:
        assert findings[kind].where == ("DequantizeLinear 'w_value' before Conv 'sum'",)
        assert (bits == 2) is ("does-not-load" in findings)
        if bits == 2:
            assert findings["int2-dequantize"].severity == "blocks"
            assert "It loads with graph optimizations disabled" in findings["does-not-load"].remedy


def test_one_scale_for_all_channels_is_a_note(check: Check) -> None:
    findings = check(CONVOLUTION.replace("<axis = 0>", ""), constants(w_scale=np.float32(0.1), w_zero=np.int8(0)))
    assert [(kind, finding.severity) for kind, finding in findings.items()] == [("per-tensor-weights", "note")]
    assert findings["per-tensor-weights"].where == ("Conv 'sum'",)


def test_one_scale_for_one_channel_is_no_finding(check: Check) -> None:
    one = constants(w=np.arange(-9, 9, dtype=np.int8).reshape(1, 2, 3, 3), w_scale=np.float32(0.1), w_zero=np.int8(0))
    assert check(CONVOLUTION.replace("<axis = 0>", ""), one, y="uint8[1,1,6,6] y") == {}


def test_dynamic_quantization(check: Check) -> None:
    body = "codes, scale, zero = DynamicQuantizeLinear(x)\n y = ConvInteger(codes, w, zero)"
    findings = check(body, {"w": constants()["w"]}, "float[1,2,8,8] x", "int32[1,3,6,6] y")
    assert findings["dynamic-quantization"].where == ("DynamicQuantizeLinear 'codes'", "ConvInteger 'y'")


@pytest.mark.parametrize(("largest", "clip", "possible"), [(64, 255, False), (65, 255, True), (127, 15, False)])
def test_saturation(check: Check, largest: int, clip: int, possible: bool) -> None:
    body = "clipped = Clip(x, low, high)\n" + CONVOLUTION.replace("(x, x_scale", "(clipped, x_scale")
    weights = np.full((3, 2, 3, 3), largest, np.int8)
    findings = check(body, constants(w=weights, low=np.uint8(0), high=np.uint8(clip)))
    assert findings.keys() == ({"int16-saturation"} if possible else set())
    if possible:
        assert findings["int16-saturation"].severity == "inexact"
        assert findings["int16-saturation"].where[0].endswith("sums up to 33,150")


@pytest.mark.parametrize(("bias", "possible"), [(2**31 - 1, True), (2**30, False)])
def test_overflow(check: Check, bias: int, possible: bool) -> None:
    body = "y = QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias)"
    findings = check(body, constants(bias=np.full(3, bias, np.int32)))
    assert findings.keys() == ({"int32-overflow"} if possible else set())


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf])
def test_scales_that_are_no_positive_numbers(check: Check, scale: float) -> None:
    body = "y = QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)"
    findings = check(body, constants(w_scale=np.array([0.1, scale, 0.3], np.float32)))
    assert findings["bad-scale"].severity == "inexact"
    assert "bad-scale" not in check(body, constants())


@pytest.mark.parametrize(("bits", "level", "given", "found"), [
    (4, 4, False, True), (4, 4, True, False), (4, 0, False, False), (2, 4, False, False),
])  # fmt: skip
def test_weights_without_zero_points(check: Check, bits: int, level: int, given: bool, found: bool) -> None:
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
def test_pools_that_meet_ties(check: Check, operator: str, ratio: float, ties: bool) -> None:
    body = operator.replace("QLinear", "y = com.microsoft.QLinear", 1)
    values: Constants = {"s": np.float32(ratio), "one": np.float32(1), "zero": np.uint8(0)}
    findings = check(f"{body}(x, s, zero, one, zero)", values, "uint8[1,2,2,2] x", "uint8[1,2,1,1] y")
    assert findings.keys() == ({"pool-ties"} if ties else set())


def test_ends_in_float(check: Check) -> None:
    behind = CONVOLUTION + "value = DequantizeLinear(y, y_scale, y_zero)\n p = Softmax(value)"
    findings = check(behind, constants(), y="float[1,3,6,6] p")
    assert findings["float-end"].severity == "note"
    assert findings["float-end"].where == ("Softmax 'p', between DequantizeLinear 'value' and the output",)
    before = "big = Conv(image, first)\n x = QuantizeLinear(big, x_scale, x_zero)\n" + CONVOLUTION
    findings = check(before, constants(first=np.ones((2, 1, 1, 1), np.float32)), "float[1,1,8,8] image")
    assert findings.keys() == {"float-end"}
    assert findings["float-end"].severity == "slow"
    assert findings["float-end"].where == ("Conv 'big', between the input and QuantizeLinear 'x'",)


def test_an_operator_of_another_domain_does_not_load(check: Check) -> None:
    findings = check("y = elsewhere.Strange(x)", {})
    assert findings["does-not-load"].severity == "blocks"
    assert "Strange" in findings["does-not-load"].where[0]


def test_what_is_not_looked_into_is_not_known(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    model = build_model(CONVOLUTION + "e = Cast<to = 1>(eighths)", constants(), y=f"{Y}, float[2] e")
    model.graph.initializer.add(name="eighths", data_type=TensorProto.FLOAT8E4M3FN, dims=[2], raw_data=b"ab")
    path = tmp_path / "eighths.onnx"
    path.write_bytes(model.SerializeToString())
    finding = by_kind(path)["not-looked-into"]
    assert finding.severity == "unknown"
    (sentence,) = finding.where
    assert sentence.startswith("initializer 'eighths' has element type number 17")
    outcome = call("doctor", path)
    assert outcome.code == 1
    assert "What holds this model back is not known" in outcome.out


@settings(max_examples=40)
@given(st.data())
def test_damaged_files_are_diagnosed_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(build_model(CONVOLUTION, constants()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))]))
    try:
        assert isinstance(diagnose(path), Diagnosis)
    except ModelFileError as error:
        assert "damaged.onnx" in str(error)  # noqa: PT017 - either outcome is right


def test_the_command_prints_writes_json_and_ends_with_0_or_1(
    write_model: WriteModel, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    outcome = call("doctor", write_model(), "--json", tmp_path / "clean.json")
    assert outcome.code == 0, outcome
    assert "With and without optimizer: 'logits' equal" in outcome.out
    assert "Nothing holds this model back." in outcome.out
    assert read_report(tmp_path / "clean.json", Diagnosis) == diagnose(write_model())
    outcome = call("doctor", write_model(ties=True))
    assert outcome.code == 1
    assert "inexact addition-ties" in outcome.out
    assert "Findings: 1 inexact." in outcome.out
    outcome = call("doctor", tmp_path / "absent.onnx")
    assert outcome.code == 2
    assert "absent.onnx does not exist" in outcome.error


def test_names_of_the_file_are_escaped_and_cut(tmp_path: Path) -> None:
    model = build_model(CONVOLUTION, constants(w_scale=np.array([0.1, 0, 0.3], np.float32)))
    model.graph.node[1].name = "\x1b[31m" + "n" * 5000
    path = tmp_path / "names.onnx"
    path.write_bytes(model.SerializeToString())
    (place,) = by_kind(path)["bad-scale"].where
    assert place.startswith("DequantizeLinear '\\x1b[31mnnn")
    assert len(place) < 200


@pytest.mark.parametrize("format_", ["QDQ", "QOperator"])
@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_files_of_onnx_runtimes_own_quantizer(
    tmp_path: Path, rng: np.random.Generator, format_: str, activations: str, reduce_range: bool
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    body = "a = Conv(x, w, b)\n r = Relu(a)\n p = GlobalAveragePool(r)\n f = Flatten(p)\n y = Gemm<transB = 1>(f, v)"
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4)}
    values = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    model = build_model(body, values, "float[1,3,9,9] x", "float[1,5] y")
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
    # In QDQ, ONNX Runtime makes uint8 of int8 where nothing branches.
    assert ("s8s8" in findings) is (activations == "QInt8" and format_ == "QOperator" and IS_X86)
    assert ("int16-saturation" in findings) is not reduce_range
    assert "pool-ties" in findings
    assert not findings.keys() & {"per-tensor-weights", "batchnorm", "float-end", "does-not-load", "not-looked-into"}
