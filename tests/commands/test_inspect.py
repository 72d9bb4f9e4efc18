"""`inspect`: what it prints of each kind of model, and files that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from qil_deploy.checkpoint import load_model
from qil_deploy.frozen import FrozenLayer
from qil_deploy.training.models import build_model

if TYPE_CHECKING:
    from tests.commands.conftest import Outcome, Run

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
    for name, layer in layers.items():
        bits, codes = layer.layer.weight_quantizer.bits, layer.weight_codes.numpy()
        zeros = f"{100 * np.mean(codes == 0):.1f} %"
        assert f"│ {name} │ {bits} │ 0..{int(layer.x.high)} │ {codes.size:,} │ {zeros} │" in outcome.out
    for line in ("int32", "int16", "ties", "float", "weights"):
        assert f"│ {line} │" in outcome.out


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
