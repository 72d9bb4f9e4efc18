"""Checkpoints of networks with float parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from qil_deploy.checkpoint import METADATA_KEY, CheckpointInfo, load_model, read_checkpoint, save_checkpoint
from qil_deploy.checkpoint.safetensors_file import file_content
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.training.models import build as models

if TYPE_CHECKING:
    from tests.command_line import Outcome


def checkpoint(folder: Path) -> Path:
    """Write MobileNetV3 with GELU, untrained, with those in float."""
    path, _, _ = prepared_checkpoint(folder / "kept.safetensors", "mobilenet_with_gelu", QuantConfig(allow_float=True))
    return path


def prepared_checkpoint(path: Path, name: str, config: QuantConfig) -> tuple[Path, nn.Module, Tensor]:
    """Prepare an untrained network on digits and write it; return path, model, and the images it was calibrated on."""
    torch.manual_seed(0)
    data, arguments = load_images("digits"), {"in_channels": 1, "num_classes": 10}
    pixels = preprocessing_for("digits", data)
    x = torch.from_numpy(pixels.normalize(data.images[:64]))
    model = prepare(models.build_model(name, arguments), config, x[:1], input_grid=pixels)
    calibrate(model, [x])
    info = CheckpointInfo(
        kind="quantized",
        model_name=name,
        model_arguments=arguments,
        config=config,
        preprocessing=pixels,
        data="digits",
        class_names=data.class_names,
        metrics={},
    )
    save_checkpoint(path, info, model)
    return path, model, x


def with_gelu(**arguments: Any) -> nn.Module:  # noqa: ANN401 - those of the network
    network = models.MODELS["mobilenet_v3_small"](**arguments)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardswish):
                setattr(module, name, nn.GELU())
    return network


@pytest.fixture(autouse=True)
def one_network_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "mobilenet_with_gelu", with_gelu)


def test_export_needs_no_option_and_inspect_names_the_float_kernels(
    call: Callable[..., Outcome], refused: Callable[..., str], tmp_path: Path
) -> None:
    path, model, report = checkpoint(tmp_path), tmp_path / "model.onnx", tmp_path / "report.json"
    sentence = refused("export", path, "-o", model, "--golden", 3)
    assert f"checkpoint {path} keeps features.0.2" in sentence
    assert "--golden is for networks that are integers from the image to the logits" in sentence
    assert not model.exists()
    outcome = call("export", path, "-o", model, "--limit", 50)
    assert outcome.code == 0, outcome.error
    assert call("inspect", model, "--json", report).code == 0
    content = json.loads(report.read_text())
    assert len(content["metadata"]["float_parts"]) > 10
    assert {"Gelu"} == {kernel["operator"] for kernel in content["float_kernels"]}
    assert call("verify", model, "--checkpoint", path, "--limit", 50).code == 0

    info, tensors = read_checkpoint(path)
    refusing = info.model_copy(update={"config": QuantConfig()})
    path.write_bytes(file_content(tensors, {METADATA_KEY: refusing.model_dump_json()}))
    assert "(GELU) cannot be lowered" in refused("export", path, "-o", tmp_path / "other.onnx")


@pytest.mark.parametrize("unknown", [("float_scales",), ("float_gates", "float_scales")])
def test_checkpoints_from_before_gates_or_scales_were_integers_keep_them_in_float(
    unknown: tuple[str, ...], tmp_path: Path
) -> None:
    config = QuantConfig(allow_float=True, float_gates="float_gates" in unknown, float_scales=True)
    path, model, x = prepared_checkpoint(tmp_path / "old.safetensors", "mobilenet_v3_small", config)
    info, tensors = read_checkpoint(path)
    content = json.loads(info.model_dump_json())
    for key in unknown:
        del content["config"][key]
    path.write_bytes(file_content(tensors, {METADATA_KEY: json.dumps(content)}))
    info, again = load_model(path, models.build_model)
    assert info.config == config
    with torch.no_grad():
        torch.testing.assert_close(again(x), model.eval()(x), rtol=0, atol=0)
