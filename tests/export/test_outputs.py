"""Networks of several outputs, also maps: no differing numbers from file to verify, golden vectors and devices."""

from __future__ import annotations

# ruff: noqa: ARG005 - the functions of all cases are called alike
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.commands.predictors import model_predictor, record_codes
from qil_deploy.datasets import ImageSet
from qil_deploy.errors import CertificateError, ConfigError, DataError, ModelFileError
from qil_deploy.export import ExportOptions, export_onnx
from qil_deploy.export.certify import certify
from qil_deploy.export.export import expected_codes
from qil_deploy.metrics import AveragePrecision, BoxDecoder, pad_boxes
from qil_deploy.network import FrozenModel, QuantizedModel
from qil_deploy.onnx_io import NetworkOutput
from qil_deploy.reports import report_text
from qil_deploy.runtime_tests import VerifyReport, read_report, verify, write_report
from qil_deploy.runtime_tests.backends import FROZEN, REFERENCE, onnx_backend_name
from qil_deploy.runtime_tests.device_runner import main
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden import check_golden, golden_path, write_golden
from qil_deploy.runtime_tests.layers import describe_layers
from qil_deploy.runtime_tests.tables import verify_table

SIZE = 12
GRID = Preprocessing(channels=3, height=SIZE, width=SIZE, scale=0.0123, zero_point=77)
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, SIZE, SIZE), dtype=np.uint8)


class Heads(nn.Module):
    """A small U-shape with heads of every kind; the function selects those returned."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.up = nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.point, self.window = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.grouped, self.head_norm, self.fc = nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6), nn.Linear(6, 7)
        self.function = function

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the case returns
        x = F.relu(self.norm(self.stem(x)))
        low = F.relu(self.down(x))
        wide = F.relu(self.up(torch.cat([x, F.interpolate(low, scale_factor=2)], 1)))
        return self.function(self, x, low, wide)


CASES: dict[str, Callable[..., Any]] = {
    "one map": lambda m, x, low, wide: m.point(wide),
    "one map of windows": lambda m, x, low, wide: m.window(wide),
    "normalized groups": lambda m, x, low, wide: m.head_norm(m.grouped(low)),
    "one pixel": lambda m, x, low, wide: m.point(F.max_pool2d(wide, SIZE)),
    "clipped": lambda m, x, low, wide: F.relu6(m.point(wide)),
    "turned": lambda m, x, low, wide: m.point(wide).permute(0, 2, 3, 1),
    "pooled": lambda m, x, low, wide: F.adaptive_avg_pool2d(m.point(wide), 1),
    "enlarged": lambda m, x, low, wide: F.interpolate(m.window(wide), scale_factor=2),
    "bilinear, as of torchvision's segmentation": lambda m, x, low, wide: {
        "out": F.interpolate(m.point(wide), scale_factor=2, mode="bilinear"),
        "aux": F.interpolate(m.grouped(low), scale_factor=4, mode="bilinear"),
    },
    "chances and slices": lambda m, x, low, wide: (torch.sigmoid(m.point(wide)), *m.window(wide).split([1, 3], 1)),
    "rows and pixels": lambda m, x, low, wide: (m.fc(low.mean((2, 3))).view(-1, 7, 1), m.point(wide).flatten(2)),
    "all kinds": lambda m, x, low, wide: {
        "out": m.point(wide),
        "aux": m.window(wide),
        "row": m.fc(low.mean((2, 3))),
        "features": x,
        "coarse": F.max_pool2d(m.head_norm(m.grouped(low)), 2),
    },
    "one of each size": lambda m, x, low, wide: (m.point(wide), m.grouped(low), F.max_pool2d(wide, 4)),
    "named like layers": lambda m, x, low, wide: {"up": m.point(wide), "stem": m.grouped(low), "logits_2": low},
    "one tensor twice in another order": lambda m, x, low, wide: ((y := m.point(wide)), y.permute(0, 2, 3, 1)),
}


def frozen(function: Callable[..., Any], seed: int = 0, **config: Any) -> FrozenModel:  # noqa: ANN401 - QuantConfig's
    torch.manual_seed(seed)
    x = torch.from_numpy(GRID.normalize(IMAGES))
    model = prepare(Heads(function), QuantConfig(**config), x[:1], input_grid=GRID)
    calibrate(model, [x])
    return freeze(model)


def export(model: FrozenModel, path: Path, names: tuple[str, ...] = (), **options: Any) -> Path:  # noqa: ANN401 - ExportOptions'
    export_onnx(model, path, preprocessing=GRID, class_names=names, options=ExportOptions(**options))
    return path


def test_layers_of_exact_sums_are_described_by_their_weights(tmp_path: Path) -> None:
    """ConvInteger has its weights where other layers have a scale, and a zero point where others have them."""
    path = export(frozen(CASES["one map of windows"]), tmp_path / "model.onnx")
    layers = describe_layers(read_exported_model(path))
    (layer,) = [layer for layer in layers if layer.operator == "ConvInteger"]
    assert (layer.name, layer.weight_shape) == ("window", (4, 8, 3, 3))
    assert layer.bytes == 4 * 8 * 3 * 3
    assert layer.zero_share < 0.5
    assert layer.macs == 4 * 8 * 3 * 3 * SIZE * SIZE
    assert layer.smallest_multiplier is None


def verified(path: Path, model: QuantizedModel, labels: Any = None, **options: Any) -> VerifyReport:  # noqa: ANN401 - arrays, verify's
    images = ImageSet(
        images=IMAGES, labels=np.zeros(len(IMAGES), np.int64) if labels is None else labels, class_names=()
    )
    others = {FROZEN: model_predictor(model, GRID)}

    def codes(pixels: Any) -> Any:  # noqa: ANN401 - arrays
        return record_codes(model, torch.from_numpy(GRID.normalize(pixels)))

    return verify(path, images.batches(4), others=others, codes={FROZEN: codes}, **options)


@pytest.mark.parametrize("outputs", ["float", "codes"])
@pytest.mark.parametrize("case", CASES)
def test_every_number_of_every_output_is_equal(case: str, outputs: str, tmp_path: Path) -> None:
    model = frozen(CASES[case], outputs=outputs)
    for format_ in ("qlinear", "qdq"):
        path = export(model, tmp_path / f"{format_}.onnx", format=format_)
        report = verified(path, model, first_difference=True, between=(REFERENCE, FROZEN))
        assert report.exact, report.backends
        exact = [backend for backend in report.backends if backend.must_equal]
        assert len(exact) == (5 if format_ == "qlinear" else 2)
        described = read_exported_model(path)
        for backend in exact:
            assert [(output.name, output.differing) for output in backend.outputs] == [
                (name, 0) for name in described.output_names
            ]
            assert sum(output.elements for output in backend.outputs) == len(IMAGES) * described.numbers
        (comparison,) = report.comparisons  # every code of frozen PyTorch
        assert comparison.difference is None
        assert comparison.tensors > 2
        for output in described.outputs:
            is_code = outputs == "codes" and len(output.shape) > 1
            assert output.kind == ("codes" if is_code else "logits" if len(output.shape) == 1 else "dense logits")


def test_metadata_say_what_is_returned(tmp_path: Path) -> None:
    model = frozen(CASES["all kinds"], outputs="codes")
    path = export(model, tmp_path / "model.onnx", names=("a", "b"))
    described = read_exported_model(path)
    assert described.class_names == ("a", "b")
    out, aux, row, features, coarse = described.outputs
    assert (out.name, out.shape, out.kind, out.dtype) == ("out", (5, SIZE, SIZE), "codes", "uint8")
    assert (row.name, row.shape, row.kind, row.scale) == ("row", (7,), "logits", None)
    assert [output.shape for output in (aux, features, coarse)] == [(4, SIZE, SIZE), (6, SIZE, SIZE), (6, 2, 2)]
    found = described.onnx_runner()(IMAGES)
    with torch.no_grad():
        floats = model(torch.from_numpy(GRID.normalize(IMAGES)))
    for output in described.outputs:
        np.testing.assert_array_equal(output.values(found[output.name]), floats[output.name].numpy())
        np.testing.assert_array_equal(output.as_returned(floats[output.name].numpy()), found[output.name])


def test_a_row_of_logits_needs_no_entry(tmp_path: Path) -> None:
    model = frozen(lambda m, x, low, wide: m.fc(low.mean((2, 3))))
    path = export(model, tmp_path / "model.onnx", names=tuple("abcdefg"))
    (entry,) = onnx.load(path).metadata_props
    assert "outputs" not in json.loads(entry.value)
    assert read_exported_model(path).outputs == (NetworkOutput(name="logits", shape=(7,), kind="logits"),)
    with pytest.raises(ConfigError, match="class_names has 2 names, but the model has 7 logits"):
        export(model, path, names=("a", "b"))


@pytest.mark.parametrize("function", [CASES["one map"], CASES["all kinds"]])
def test_golden_vectors_hold_every_output(function: Callable[..., Any], tmp_path: Path) -> None:
    path = export(frozen(function, outputs="codes"), tmp_path / "model.onnx")
    golden = golden_path(path)
    write_golden(path, IMAGES, "noise", golden)
    names = read_exported_model(path).output_names
    with np.load(golden) as arrays:
        assert tuple(arrays)[-len(names) :] == names
        for name in names:
            assert arrays[name].dtype == ("float32" if name == "row" else "uint8")
    comparison = check_golden(path, golden, against=onnx_backend_name("all"))
    assert comparison.difference is None


def test_a_device_compares_every_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(frozen(CASES["all kinds"]), tmp_path / "model.onnx")
    golden = golden_path(path)
    write_golden(path, IMAGES, "noise", golden)
    assert main([str(path), str(golden), "--levels", "all,disabled", "--repeats", "0"]) == 0, capsys.readouterr()
    report = json.loads(capsys.readouterr().out)
    for level in report["levels"]:
        assert level["predictions"] == []
        outputs = [level["logits"], *level["others"]]
        assert [output["tensor"] for output in outputs] == ["out", "aux", "row", "features", "coarse"]
        assert {output["differing"] for output in outputs} == {0}
    with np.load(golden) as arrays:
        changed = dict(arrays)
    changed["aux"][1, 2, 3, 4] += 1
    np.savez(golden, **changed)
    assert main([str(path), str(golden), "--levels", "all", "--repeats", "0"]) == 1
    (level,) = json.loads(capsys.readouterr().out)["levels"]
    assert [
        (other["tensor"], other["differing"], other["index"]) for other in level["others"] if other["differing"]
    ] == [("aux", 1, [1, 2, 3, 4])]


def test_what_differs_is_counted_for_each_output(tmp_path: Path) -> None:
    model = frozen(CASES["all kinds"])
    path = export(model, tmp_path / "model.onnx")
    right = model_predictor(model, GRID)

    def wrong(images: Any) -> dict[str, Any]:  # noqa: ANN401 - an array
        outputs = right(images)
        outputs["aux"] = outputs["aux"].copy()
        outputs["aux"][0, 0, 0, :3] += 1
        return outputs

    images = ImageSet(images=IMAGES, labels=np.zeros(len(IMAGES), np.int64), class_names=()).batches(len(IMAGES))
    report = verify(path, images, others={"mine": wrong}, levels=["all"])
    assert report.exact is False
    found = next(backend for backend in report.backends if backend.name == "mine")
    assert [(output.name, output.differing) for output in found.outputs if output.differing] == [("aux", 3)]
    assert found.differing_logits == 3
    assert found.largest_difference == pytest.approx(1.0, abs=1e-3)
    assert any("Output aux: 3 of" in note for note in verify_table(report).notes)
    assert (report.metric, report.reference_accuracy, report.numbers) == ("", None, read_exported_model(path).numbers)
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", VerifyReport) == report
    with pytest.raises(DataError, match="mine returned no output 'aux', only out"):
        verify(path, images, others={"mine": lambda x: {"out": right(x)["out"]}}, levels=["all"])


@pytest.mark.parametrize("outputs", ["float", "codes"])
def test_mean_iou_is_measured_where_pixels_have_labels(outputs: str, tmp_path: Path) -> None:
    model = frozen(CASES["one map"], outputs=outputs)
    path = export(model, tmp_path / "model.onnx", names=tuple("abcde"))
    labels = read_exported_model(path).onnx_predictor()(IMAGES).argmax(axis=1)
    report = verified(path, model, labels)
    assert (report.metric, report.reference_accuracy) == ("mean IoU", 1.0)
    worse = verified(path, model, (labels + 1) % 5)
    assert worse.reference_accuracy == 0.0
    assert "mean IoU %" in str([getattr(column, "heading", column) for column in verify_table(report).columns])
    with pytest.raises(
        DataError, match=r"labels are int64 of shape \[4, 5, 12\]; integers of shape \[4, 12, 12\] belong"
    ):
        verified(path, model, labels[:, :5])


def test_average_precision_is_measured_of_boxes_that_the_file_says_how_to_decode(tmp_path: Path) -> None:
    model = frozen(lambda m, x, low, wide: {"near": m.grouped(low), "far": m.head_norm(F.max_pool2d(low, 2))})
    decoder = BoxDecoder(outputs=("near", "far"), strides=(2, 4), classes=2, score=0.5)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, preprocessing=GRID, class_names=("a", "b"), boxes=decoder)
    described = read_exported_model(path)
    assert described.boxes == decoder
    found = decoder.decode(described.values(described.onnx_runner()(IMAGES)))
    assert sum(map(len, found)) > 0
    labels = pad_boxes([np.concatenate([each.boxes, each.classes[:, None]], axis=1) for each in found])
    report = verified(path, model, labels)
    assert (report.metric, report.reference_accuracy) == ("AP at IoU 0.5", 1.0)
    assert report.exact
    other = replace(decoder, score=1.0)
    assert verified(path, model, labels, metric=lambda: AveragePrecision(other)).reference_accuracy == 0.0
    with pytest.raises(ConfigError, match=r"boxes are in output 'near' .*\[6, 4, 4\].* of 3 classes need \[7, H, W\]"):
        export_onnx(model, path, preprocessing=GRID, class_names=(), boxes=replace(decoder, classes=3))


def test_other_weights_of_a_map_are_refused(tmp_path: Path) -> None:
    for function, name in ((CASES["one map"], "point"), (CASES["one map of windows"], "window")):
        model = frozen(function)
        path = export(model, tmp_path / "model.onnx", weights="int8")
        codes = expected_codes(model)
        certify(path, codes)
        file = onnx.load(path)
        weights = next(tensor for tensor in file.graph.initializer if tensor.name == f"{name}_weight")
        array = numpy_helper.to_array(weights).copy()
        array.flat[3] += 1
        weights.CopyFrom(numpy_helper.from_array(array, weights.name))
        onnx.save(file, path)
        with pytest.raises(CertificateError, match=f"certificate line 'weights' fails at {name}: 1 is above 0"):
            certify(path, codes)


def change_metadata(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = onnx.load(path)
    metadata = json.loads(file.metadata_props[0].value)
    change(metadata)
    file.metadata_props[0].value = json.dumps(metadata)
    onnx.save(file, path)


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no outputs": (lambda m: m["outputs"].clear(), "is damaged"),
    "missing": (lambda m: m["outputs"].pop(), "returns 'out' .* but its metadata promises"),
    "other shape": (lambda m: m["outputs"][0].update(shape=[5, 6, 12]), "but its metadata promises"),
    "no shape": (lambda m: m["outputs"][0].pop("shape"), "has no entry 'shape'"),
    "a shape of text": (
        lambda m: m["outputs"][0].update(shape=["5"]),
        "entry 0 of 'shape' of entry 0 of 'outputs' is '5'",
    ),
    "other kind": (lambda m: m["outputs"][0].update(kind="words"), "output 'out' is 'words' of shape"),
    "codes without a scale": (
        lambda m: m["outputs"][0].pop("scale"),
        "output 'out' is 'codes' of shape .* with scale None",
    ),
    "a scale of zero": (lambda m: m["outputs"][0].update(scale=0), "output 'out' has the scale 0"),
    "a large zero point": (lambda m: m["outputs"][0].update(zero_point=256), "output 'out' has the zero point 256"),
    "a map of logits": (
        lambda m: m["outputs"][0].update(kind="logits", scale=None, zero_point=None),
        "is damaged",
    ),
    "one name twice": (lambda m: m["outputs"][1].update(name="out"), "outputs are called"),
    "boxes of nothing": (lambda m: m.update(boxes={"outputs": []}), "has no entry 'strides'"),
    "odd anchors": (
        lambda m: m.update(
            boxes={"outputs": ["out"], "strides": [2], "classes": 1, "anchors": [[[1]]], "score": 0.1, "overlap": 0.5}
        ),
        "is damaged",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_metadata_are_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    change, message = DAMAGED[case]
    path = export(frozen(CASES["all kinds"], outputs="codes"), tmp_path / "model.onnx")
    change_metadata(path, change)
    with pytest.raises(ModelFileError, match=message):
        read_exported_model(path)


def test_paper_placement_returns_maps_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.from_numpy(GRID.normalize(IMAGES))
    network = Heads(lambda m, x, low, wide: {"out": m.point(wide), "row": m.fc(low.mean((2, 3)))})
    model = prepare(network, QuantConfig(placement="paper"), x[:1], input_grid=GRID)
    calibrate(model, [x])
    path = tmp_path / "model.onnx"
    export_onnx(model.eval(), path, preprocessing=GRID, class_names=(), options=ExportOptions(format="qdq"))
    session = onnxruntime.InferenceSession(str(path))
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("out", ["batch", 5, SIZE, SIZE]),
        ("row", ["batch", 7]),
    ]
    assert re.match(r"\{", report_text(verified(path, model)))
