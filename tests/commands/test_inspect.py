"""`inspect`: its output for each kind of model, and files that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from torch import nn

from qil_deploy.checkpoint import load_model
from qil_deploy.export import export_float_onnx
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import build_model

from .conftest import paper_checkpoint

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

Call = Callable[..., "Outcome"]
Refused = Callable[..., str]


@pytest.mark.parametrize("weights", ["packed", "int8"])
@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_layers_and_certificate(run: Run, call: Call, format_: str, weights: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert call("export", run.frozen, "-o", path, "--format", format_, "--weights", weights).code == 0
    outcome = call("inspect", path)
    assert (outcome.code, outcome.error) == (0, "")
    opset = 21 if weights == "packed" else 13
    size = f"{path.stat().st_size:,} bytes"
    assert f"{path}: {size}, format {format_}, weights {weights}, opset {opset}" in outcome.out
    info, model = load_model(run.frozen, build_model)
    pixels = info.preprocessing
    grid = f"scale {pixels.scale:.6g}, zero point {pixels.zero_point}"
    assert f"Input: uint8 image [1, 8, 8], {grid}" in outcome.out
    assert "Classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in outcome.out
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FrozenLayer)}
    assert len(layers) == 10
    rows = {name: outcome.out.split(f" {name} ", 1)[1].split() for name in layers}
    for name, layer in layers.items():
        bits, codes = layer.layer.weight_quantizer.bits, layer.weight_codes.numpy()
        operator = "QGemm" if name == "fc" else "QLinearConv"
        shape = "x".join(map(str, codes.shape))
        assert rows[name][:4] == [operator, str(bits), f"0..{int(layer.x.high)}", shape]
        stored = layer_bytes(path, f"{name}_weight")
        dead = int((~codes.reshape(len(codes), -1).any(axis=1)).sum())
        assert rows[name][5:9] == [f"{stored:,}", f"{100 * np.mean(codes == 0):.1f}", "%", f"{dead}"]
    assert rows["layer2.0.conv1"][4] == f"{16 * 8 * 9 * 4 * 4:,}"  # multiplications
    for line in ("int32", "int16", "matmul", "ties", "float", "weights"):
        assert f" {line} " in outcome.out.split("Certificate line worst bound where ")[1]
    assert " QLinearConv 9 " in outcome.out
    assert "Rewritten by" not in outcome.out  # 8x8 pixels are too few


def layer_bytes(path: Path, name: str) -> int:
    """Bytes of a layer's weights, packed or not, and of the constants that spread them."""
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    found = [tensor for key, tensor in stored.items() if key in (name, f"{name}_packed", f"{name}_spread")]
    if not found or found[0].data_type == onnx.TensorProto.INT8:
        return sum(len(tensor.raw_data) for tensor in found)
    # One byte for a spread that all channels share.
    return sum(len(tensor.raw_data) for tensor in found) + (f"{name}_spread" not in stored)


def test_the_json_says_what_the_tables_say(
    run: Run, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qil_deploy.export.export._REASONS_SHARE", 1)  # the file is a small one
    path, report = tmp_path / "model.onnx", tmp_path / "new" / "report.json"
    assert call("export", run.frozen, "-o", path).code == 0
    assert call("inspect", path, "--json", report).code == 0
    content = json.loads(report.read_text())
    assert (content["schema"], content["bytes"], content["opset"]) == ("qil_deploy.inspect/1", path.stat().st_size, 21)
    assert [layer["name"] for layer in content["layers"]][::9] == ["conv1", "fc"]
    assert content["float_kernels"] == []
    assert content["metadata"]["certificate"]
    rewrites = {(rewrite["pass"], rewrite["node"]): rewrite for rewrite in content["rewrites"]}
    assert rewrites["space_to_depth", "conv1"] == {
        "node": "conv1", "pass": "space_to_depth", "rewritten": False,
        "because": "it makes fewer than 12 rows or columns",
    }  # fmt: skip
    assert rewrites["matmul_nbits", "fc"]["because"] == "it has fewer than 1,048,576 weights"
    printed = call("inspect", path).out.split("Not rewritten", 1)[1].split("Certificate")[0]
    assert " ".join(printed.split()).count("it makes fewer than 12 rows or columns conv1") == 1
    assert {"operator": "QLinearConv", "name": "conv1"}.items() <= {
        **next(kernel for kernel in content["kernels"] if kernel["operator"] == "QLinearConv"), "name": "conv1"
    }.items()  # fmt: skip


def test_float_kernels_of_a_paper_model_are_named(run: Run, call: Call, tmp_path: Path) -> None:
    checkpoint, path = paper_checkpoint(run, tmp_path), tmp_path / "paper.onnx"
    assert call("export", checkpoint, "-o", path, "--format", "qdq").code == 0
    outcome = call("inspect", path)
    assert outcome.code == 0
    kernels = outcome.out[outcome.out.index("Executed by ONNX Runtime") :]
    assert "fc" in kernels
    assert " layer1.0.conv1 Conv 5 0..31 8x8x3x3 " in outcome.out
    assert "conv1 QLinearConv 7" not in outcome.out


def test_a_float_model_has_neither(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    assert call("export", run.float, "-o", path).code == 0
    outcome = call("inspect", path)
    assert outcome.code == 0
    assert "format float, weights float32, opset 21" in outcome.out
    assert "Input: float image [1, 8, 8]" in outcome.out
    assert "Layers" not in outcome.out
    assert "Certificate" not in outcome.out


def test_files_that_are_no_models_of_ours(run: Run, call: Call, refused: Refused, tmp_path: Path) -> None:
    assert "absent.onnx" in refused("inspect", tmp_path / "absent.onnx")
    path = tmp_path / "model.onnx"
    path.write_text("this is no model")
    assert str(path) in refused("inspect", path)
    assert call("export", run.frozen, "-o", path).code == 0
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in refused("inspect", path)
    model = onnx.load_from_string(whole)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    assert "carries no 'qil_deploy' metadata" in refused("inspect", path)
    assert str(run.frozen) in refused("inspect", run.frozen)


@pytest.mark.parametrize("entry", ["layers", "certificate"])
def test_metadata_without_layers_or_certificate(
    run: Run, call: Call, refused: Refused, entry: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    assert call("export", run.frozen, "-o", path).code == 0
    model = onnx.load(path)
    model.metadata_props[0].value = model.metadata_props[0].value.replace(f'"{entry}"', '"other"')
    path.write_bytes(model.SerializeToString())
    assert f"the metadata of {path} has no entry '{entry}'" in refused("inspect", path)


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ({}, []),
        (
            {"mean": (0.5, 0.25, 0.125), "std": (0.25,) * 3},
            ["Normalised per channel: mean 0.5, 0.25, 0.125; std 0.25, 0.25, 0.25 (of pixels in [0, 1])"],
        ),
        ({"channel_order": "RGB"}, ["Pictures: channels in the order RGB"]),
        (
            {"channel_order": "BGR", "resize": 9, "interpolation": "bicubic"},
            ["Pictures: channels in the order BGR, resize the shorter side to 9, cut out the middle 8x8, bicubic"],
        ),
        ({"resize": (8, 10)}, ["Pictures: resize to 8x10, cut out the middle 8x8"]),
    ],
    ids=str,
)
def test_how_images_are_made_is_said(call: Call, tmp_path: Path, said: dict[str, Any], lines: list[str]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    pixels = Preprocessing(channels=3, height=8, width=8, scale=0.01, zero_point=75, **said)
    export_float_onnx(network, tmp_path / "m.onnx", preprocessing=pixels, class_names=["a", "b"])
    out = " ".join(call("inspect", tmp_path / "m.onnx").out.split())
    for line in lines:
        assert line in out
    for start in ("Pictures", "Normalised per channel"):
        assert (start in out) == any(line.startswith(start) for line in lines)
