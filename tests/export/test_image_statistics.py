"""Networks trained on images normalised per channel: the same integers everywhere, from the pixels on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.checkpoint import CheckpointInfo, load_model, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
from qil_deploy.export.capture import InputKind
from qil_deploy.network import calibrate, prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.runtime_tests.exported_model import inspect_exported_model, read_exported_model

from .conftest import Case, Exports

PIXELS = Preprocessing.from_statistics((3, 16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TwoStems(nn.Module):
    """Two convolutions read the image, one of them in groups; their results are joined with the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(8)
        self.mix, self.head = nn.Conv2d(17, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.norm(self.one(x))), self.other(x), x], 1)
        logits: Tensor = self.head(F.relu(self.mix(y)).mean((2, 3)))
        return logits


def head(channels: int = 8) -> tuple[nn.Module, ...]:
    layers = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return (*layers, nn.Linear(8, 5))


def networks() -> dict[str, nn.Module]:
    """Return networks by their first operation."""
    torch.manual_seed(3)
    stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    return {
        "convolution": nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU(), *head()),
        "convolution alone": nn.Sequential(nn.Conv2d(3, 8, 5, padding=2, bias=False), *head()),
        "depthwise": nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU6(), *head(6)),
        "average": nn.Sequential(nn.AvgPool2d(2), *head(3)),
        "maximum": nn.Sequential(nn.MaxPool2d(2), *head(3)),
        "BatchNorm": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *head()),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 5)),
        "two": TwoStems(),
    }


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (8, *PIXELS.shape), np.uint8)


@pytest.mark.parametrize("options", [{}, {"format": "qdq"}, {"input": "float"}], ids=str)
@pytest.mark.parametrize("name", networks())
def test_no_code_differs(
    exports: Exports, tmp_path: Path, images: NDArray[np.uint8], name: str, options: dict[str, str]
) -> None:
    case = exports.case(networks()[name], QuantConfig(weight_bits=4, activation_bits=4), images, PIXELS)
    exports.check_equal(case, tmp_path / "model.onnx", **options)


def test_a_file_of_normalised_images_takes_any_pixel_for_itself(tmp_path: Path) -> None:
    """All 256 values of each channel."""
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (1, 3, 16, 16))
    case = Case.of(networks()["convolution"], QuantConfig(), np.ascontiguousarray(pixels), PIXELS)
    case.export(tmp_path / "model.onnx", input="float")
    found = case.runtime_values(tmp_path / "model.onnx", ["input_quantizer"], "all")
    np.testing.assert_array_equal(found["input_quantizer"], pixels)


@pytest.mark.parametrize("input_kind", ["uint8", "float"])
def test_paper_placement_normalises_in_the_graph(
    tmp_path: Path, images: NDArray[np.uint8], input_kind: InputKind
) -> None:
    x = torch.from_numpy(PIXELS.normalize(images))
    model = prepare(networks()["convolution"], QuantConfig(placement="paper"), x[:1], input_grid=PIXELS)
    calibrate(model, [x])
    options = ExportOptions(format="qdq", input=input_kind)
    export_onnx(model, tmp_path / "m.onnx", preprocessing=PIXELS, class_names=list("abcde"), options=options)
    found = read_exported_model(tmp_path / "m.onnx").onnx_predictor()(images)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=0, atol=0.02)


def test_metadata_say_how_pixels_are_made_and_normalised(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    pixels = replace(PIXELS, channel_order="RGB", resize=18, interpolation="bicubic")
    case = Case.of(networks()["convolution"], QuantConfig(), images, pixels)
    case.export(tmp_path / "m.onnx")
    for read in (read_exported_model, inspect_exported_model):
        assert read(tmp_path / "m.onnx").preprocessing == pixels
    export_float_onnx(case.network, tmp_path / "f.onnx", preprocessing=pixels, class_names=case.class_names)
    found = read_exported_model(tmp_path / "f.onnx").onnx_predictor()(images)
    with torch.no_grad():
        expected = case.network.eval()(torch.from_numpy(pixels.normalize(images))).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_other_statistics_than_those_of_prepare_are_refused(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    case = Case.of(networks()["convolution"], QuantConfig(), images, PIXELS)
    other = Preprocessing.from_statistics(PIXELS.shape, (0.485, 0.456, 0.407), (0.229, 0.224, 0.225))
    with pytest.raises(
        ConfigError, match=r"mean 0\.485, 0\.456, 0\.407 and std .*prepared for .*mean 0\.485, 0\.456, 0\.406"
    ):
        export_onnx(case.frozen, tmp_path / "m.onnx", preprocessing=other, class_names=case.class_names)


@pytest.mark.parametrize("kind", ["quantized", "frozen"])
@pytest.mark.parametrize("name", ["convolution", "average", "BatchNorm", "two"])
def test_a_checkpoint_gives_the_same_logits_to_the_bit(
    tmp_path: Path, images: NDArray[np.uint8], name: str, kind: Literal["quantized", "frozen"]
) -> None:
    case = Case.of(networks()[name], QuantConfig(), images, PIXELS)
    model = case.prepared if kind == "quantized" else case.frozen
    info = CheckpointInfo(
        kind=kind,
        model_name=name,
        model_arguments={},
        config=QuantConfig(),
        preprocessing=PIXELS,
        data="none",
        class_names=case.class_names,
        metrics={},
    )
    save_checkpoint(tmp_path / "c.safetensors", info, model)
    read, loaded = load_model(tmp_path / "c.safetensors", lambda name, _arguments: networks()[name])
    assert read == info
    x = torch.from_numpy(PIXELS.normalize(images))
    with torch.no_grad():
        np.testing.assert_array_equal(loaded(x).numpy(), model.eval()(x).numpy(), strict=True)
