"""Export of whole networks: structure, metadata, size, and refusals that leave no files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import CertificateError, ConfigError, OutputError
from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
from qil_deploy.export import certify as certificate_module
from qil_deploy.export import export as export_module
from qil_deploy.export.certify import bound, certify
from qil_deploy.export.passes import set_versions
from qil_deploy.export.trial_run import differing_outputs
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.onnx_io.model_file import OnnxFile
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports


def test_a_prepared_model_is_frozen_on_the_way(exports: Exports, tmp_path: Path) -> None:
    case = exports.resnet()
    path = tmp_path / "prepared.onnx"
    export_onnx(case.prepared, path, preprocessing=case.preprocessing, class_names=case.class_names)
    assert path.read_bytes() == case.export(tmp_path / "frozen.onnx").read_bytes()


def test_the_same_model_gives_the_same_bytes(exports: Exports, tmp_path: Path) -> None:
    case = exports.resnet()
    assert case.export(tmp_path / "a.onnx").read_bytes() == case.export(tmp_path / "b.onnx").read_bytes()


# Of a ResNet with `b` blocks per group: 6b+1 convolutions of 3x3 and 2 shortcuts of 1x1, 3b additions.
#   Add         3b additions, 3b requantizations of the 8-bit residual stream to a block's low bits (shared by the
#               block's first convolution and its shortcut)
#   Clip        one behind each low-bit result: 3b requantizations, 3b first convolutions of a block; 8-bit results
#               (stem, second convolutions, shortcuts, additions, pooling) saturate by themselves
#   Pad         planes that fill the image's channels up to four
#   Cast, Mul   one each per packed layer: all convolutions but the 7-bit stem, which like the 7-bit classifier is
#               stored in int8
NODE_COUNTS = {
    (8, "qlinear"): {
        "QLinearConv": 9, "QLinearAdd": 6, "Clip": 6, "QLinearGlobalAveragePool": 1, "Flatten": 1, "QGemm": 1,
        "Cast": 8, "Mul": 8,
    },
    (20, "qlinear"): {
        "QLinearConv": 21, "QLinearAdd": 18, "Clip": 18, "QLinearGlobalAveragePool": 1, "Flatten": 1, "QGemm": 1,
        "Cast": 20, "Mul": 20,
    },
    # Per Conv 3 DequantizeLinear (data, weights, bias) and a QuantizeLinear, per Add 2 and 1, pooling 1 and 1,
    # Gemm 3 and none, for logits are float.
    (8, "qdq"): {
        "Conv": 9, "Add": 6, "Clip": 6, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "Cast": 8, "Mul": 8,
        "DequantizeLinear": 3 * 9 + 2 * 6 + 1 + 3, "QuantizeLinear": 9 + 6 + 1,
    },
    (20, "qdq"): {
        "Conv": 21, "Add": 18, "Clip": 18, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
        "Cast": 20, "Mul": 20, "DequantizeLinear": 3 * 21 + 2 * 18 + 1 + 3, "QuantizeLinear": 21 + 18 + 1,
    },
}  # fmt: skip


@pytest.mark.parametrize(("depth", "format_"), list(NODE_COUNTS))
def test_node_counts(exports: Exports, depth: int, format_: str, tmp_path: Path) -> None:
    case = exports.resnet(depth)
    expected = NODE_COUNTS[depth, format_]
    packed = onnx.load(case.export(tmp_path / "packed.onnx", format=format_))
    assert Counter(node.op_type for node in packed.graph.node) == expected
    plain = onnx.load(case.export(tmp_path / "plain.onnx", format=format_, weights="int8"))
    without = {op: count for op, count in expected.items() if op not in ("Cast", "Mul")}
    if format_ == "qdq":  # one pool per operand of an addition that is a convolution's own: keep_roundings
        without["MaxPool"] = expected["Conv"] // 2 + 1
    assert Counter(node.op_type for node in plain.graph.node) == without
    floats = onnx.load(case.export(tmp_path / "floats.onnx", format=format_, input="float"))
    quantize = Counter({"QuantizeLinear": 1})
    assert Counter(node.op_type for node in floats.graph.node) == Counter(expected) + quantize


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_nodes_and_tensors_are_named_like_modules(exports: Exports, format_: str, tmp_path: Path) -> None:
    model = onnx.load(exports.resnet().export(tmp_path / "model.onnx", format=format_))
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    layers = [
        *("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"),
        *("layer2.0.downsample.0", "layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0", "fc"),
    ]
    matrices = ("QLinearConv", "QGemm", "Conv", "Gemm")
    assert sorted(node.name for node in model.graph.node if node.op_type in matrices) == sorted(layers)
    outputs = {output for node in model.graph.node for output in node.output}
    assert {*layers[:-1], "add", "add_1", "add_2", "pool", "logits"} <= outputs
    initializers = {initializer.name for initializer in model.graph.initializer}
    assert {f"{layer}_bias" for layer in layers} <= initializers
    assert {f"{layer}_weight_packed" for layer in layers[1:-1]} | {"conv1_weight", "fc_weight"} <= initializers


def test_only_the_batch_is_free_in_input_and_output(exports: Exports, tmp_path: Path) -> None:
    case = exports.resnet()
    for input_, element in (("uint8", TensorProto.UINT8), ("float", TensorProto.FLOAT)):
        graph = onnx.load(case.export(tmp_path / "model.onnx", input=input_)).graph
        (image,), (logits,) = graph.input, graph.output
        assert image == helper.make_tensor_value_info("image", element, ["batch", 1, 8, 8])
        assert logits == helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])


def test_metadata(exports: Exports, tmp_path: Path) -> None:
    case = exports.resnet(weight_bits=3, activation_bits=5)
    model = onnx.load(case.export(tmp_path / "model.onnx", data="digits", format="qdq"))
    (entry,) = model.metadata_props
    assert entry.key == "qil_deploy"
    metadata = json.loads(entry.value)
    lines = certify(tmp_path / "model.onnx", export_module.expected_codes(case.frozen))
    assert metadata.pop("certificate") == [
        {"name": line.name, "worst": line.worst, "bound": line.bound, "where": line.where}
        for line in lines
        if line.name not in ("pooling", "scales", "runs")
    ]
    assert [line.name for line in lines] == [
        "int32", "int16", "matmul", "scales", "pooling", "ties", "float", "weights", "runs"
    ]  # fmt: skip
    layers = metadata.pop("layers")
    assert [layer["name"] for layer in layers] == [
        node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")
    ]
    edge = {"weight_bits": 7, "largest_input_code": 255}
    for layer in layers:
        inner = layer["name"] not in ("conv1", "fc")
        expected = {"weight_bits": 3, "largest_input_code": 31} if inner else edge
        shape = list(case.frozen.get_buffer(f"{layer['name']}.weight_codes").shape)
        assert layer == {"name": layer["name"], "weight_shape": shape, **expected}
    pixels = case.preprocessing
    middle = [layer["name"] for layer in layers if layer["name"] not in ("conv1", "fc")]
    assert "left_alone" not in metadata  # a small file
    result = export_onnx(
        case.frozen,
        tmp_path / "again.onnx",
        preprocessing=case.preprocessing,
        class_names=case.class_names,
        options=ExportOptions(format="qdq"),
    )
    assert result.left_alone == {
        "space_to_depth": {
            "it makes fewer than 12 rows or columns": ["conv1"],
            "it reads codes, not the image": middle,
        },
    }
    assert metadata == {
        "schema": 1,
        "format": "qdq",
        "weights": "packed",
        "input": "uint8",
        "batch": None,
        "passes": {"simplify": [], "space_to_depth": []},
            "placement": "integer",
        "input_scale": pixels.scale,
        "input_zero_point": pixels.zero_point,
        "preprocessing": {
            "channels": 1, "height": 8, "width": 8, "scale": pixels.scale, "zero_point": pixels.zero_point,
        },
        "class_names": list(case.class_names),
        "data": "digits",
        "freezing": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weight_bits", "weights", "opset", "ir_version"),
    [(2, "packed", 25, 13), (3, "packed", 21, 10), (4, "packed", 21, 10), (5, "packed", 13, 7), (2, "int8", 13, 7)],
)
def test_opset_and_ir_version_are_the_oldest_that_hold_the_weights(
    exports: Exports, weight_bits: int, weights: str, opset: int, ir_version: int, tmp_path: Path
) -> None:
    case = exports.resnet(weight_bits=weight_bits)
    for format_, domains in (("qlinear", {"": opset, "com.microsoft": 1}), ("qdq", {"": opset})):
        model = onnx.load(case.export(tmp_path / "model.onnx", weights=weights, format=format_))
        assert {entry.domain: entry.version for entry in model.opset_import} == domains
        assert model.ir_version == ir_version
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    ("bits", "element", "dtype"),
    [(2, TensorProto.INT2, "int2"), (3, TensorProto.INT4, "int4"), (4, TensorProto.INT4, "int4")],
)
def test_packed_initializers_hold_the_codes_of_the_model(
    exports: Exports, bits: int, element: int, dtype: str, tmp_path: Path
) -> None:
    case = exports.resnet(weight_bits=bits)
    model = onnx.load(case.export(tmp_path / "model.onnx"))
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    layers = {name: m for name, m in case.frozen.named_modules() if isinstance(m, FrozenLayer)}
    assert len(layers) == 10
    for name, layer in layers.items():
        if name in ("conv1", "fc"):
            assert initializers[f"{name}_weight"].data_type == TensorProto.INT8
            continue
        stored = initializers[f"{name}_weight_packed"]
        assert stored.data_type == element
        assert len(stored.raw_data) == -(-layer.weight_codes.numel() * int(dtype[-1]) // 8)
        codes = numpy_helper.to_array(stored).astype(np.int8)
        np.testing.assert_array_equal(codes, layer.weight_codes.numpy(), strict=True)


def test_files_are_at_most_a_sixth_and_a_tenth_of_the_float_file(exports: Exports, tmp_path: Path) -> None:
    four, two = (exports.resnet(20, weight_bits=bits, activation_bits=bits, width=16) for bits in (4, 2))
    whole = export_float_onnx(
        four.network, tmp_path / "f.onnx", preprocessing=four.preprocessing, class_names=four.class_names
    ).size
    assert four.export(tmp_path / "4.onnx").stat().st_size * 6 <= whole
    assert two.export(tmp_path / "2.onnx").stat().st_size * 10 <= whole


class Small(nn.Module):
    """Two convolutions, followed by `tail`."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tail(self.body(x))
        return y


SMALL = Preprocessing(channels=2, height=6, width=7, scale=0.02, zero_point=100)


def small_case(exports: Exports, tail: nn.Module) -> Case:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, *SMALL.shape), np.uint8)
    return exports.case(Small(tail), QuantConfig(), images, SMALL)


def test_a_flatten_that_keeps_two_dimensions(exports: Exports, tmp_path: Path) -> None:
    tail = nn.Sequential(nn.Flatten(2), nn.Linear(20, 3))
    exports.check_equal(small_case(exports, tail), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("weight_bits", "options", "message"),
    [
        (4, {"opset": 20}, r"opset is 20; packed weights of this model need 21 to 25, or store them as int8\."),
        (2, {"opset": 24}, r"opset is 24; packed weights of this model need 25 to 25, or store them as int8\."),
        (2, {"opset": 12, "weights": "int8"}, r"opset is 12; int8 weights of this model need 13 to 25\."),
        (4, {"opset": 26}, r"opset is 26; packed weights of this model need 21 to 25"),
    ],
)
def test_an_opset_that_does_not_fit_is_refused(
    exports: Exports, weight_bits: int, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        exports.resnet(weight_bits=weight_bits).export(tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "qoperator"}, r"format is 'qoperator'; allowed are qlinear, qdq\."),
        ({"weights": "int4"}, r"weights is 'int4'; allowed are packed, int8\."),
        ({"input": "int8"}, r"input is 'int8'; allowed are uint8, float\."),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**options)


def test_another_number_of_class_names_is_refused(exports: Exports, tmp_path: Path) -> None:
    case = exports.resnet()
    with pytest.raises(ConfigError, match=r"class_names has 9 names, but the model has 10 logits\."):
        export_onnx(case.frozen, tmp_path / "m.onnx", preprocessing=case.preprocessing, class_names=list("012345678"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_what_is_certified_is_what_stays(
    exports: Exports, format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certified: list[bytes] = []
    run: list[bytes] = []

    def bound_seen(model: OnnxFile, codes: Any) -> Any:  # noqa: ANN401 - those of `bound`
        certified.append(model.path.read_bytes())
        return bound(model, codes)

    def run_seen(path: Path, trial: Any) -> tuple[float, str]:  # noqa: ANN401 - that of `differing_logits`
        run.append(path.read_bytes())
        return differing_outputs(path, trial)

    monkeypatch.setattr(export_module, "bound", bound_seen)
    monkeypatch.setattr(certificate_module, "differing_outputs", run_seen)
    path = exports.resnet().export(tmp_path / "model.onnx", format=format_)
    assert run == [path.read_bytes()]
    assert path.read_bytes().startswith(certified[0])
    graph, final = onnx.load_from_string(certified[0]), onnx.load(path)
    assert not graph.metadata_props
    del final.metadata_props[:]
    assert graph == final


def test_a_failed_certificate_leaves_an_older_file_as_it_was(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = exports.resnet()
    path = case.export(tmp_path / "model.onnx")
    before = path.read_bytes()
    codes = dict(export_module.expected_codes(case.frozen))
    codes["layer1.0.conv2"][0, 0, 0, 0] ^= 1
    monkeypatch.setattr(export_module, "expected_codes", lambda _model: codes)
    with pytest.raises(CertificateError, match=r"'weights' fails at layer1\.0\.conv2: 1 is above 0"):
        case.export(path, weights="int8")
    assert path.read_bytes() == before
    with pytest.raises(CertificateError):
        case.export(tmp_path / "new.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_that_the_checker_refuses_is_not_written(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A QLinearConv reads no int4: without what unpacks them, the weights do not fit.
    monkeypatch.setattr(set_versions, "choose_opset", lambda *_: 13)
    with pytest.raises(CertificateError, match="ONNX's checker refuses the graph"):
        exports.resnet().export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_output_below_a_file_is_refused(exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match=r"cannot write .*file/model\.onnx"):
        exports.resnet().export(tmp_path / "file" / "model.onnx")
    assert (tmp_path / "file").read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
