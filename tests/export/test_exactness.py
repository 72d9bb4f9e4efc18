"""Exported ResNets, every code and logit: ONNX Runtime, the integer reference and frozen PyTorch agree."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from qil_deploy.config import LayerOverride, QuantConfig
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reference import IntegerReference

if TYPE_CHECKING:
    from tests.export.conftest import Case, Exports

# (weight bits, activation bits). 8-bit weights cannot meet 8-bit activations (int16).
BITS = [(2, 2), (3, 3), (4, 4), (5, 5), (4, 8), (8, 7)]
VARIANTS: list[dict[str, Any]] = [
    {"format": format_, "weights": weights, "input": input_}
    for format_ in ("qlinear", "qdq")
    for weights in ("packed", "int8")
    for input_ in ("uint8", "float")
]


@pytest.fixture(params=BITS, ids=lambda bits: f"w{bits[0]}a{bits[1]}")
def case(request: pytest.FixtureRequest, exports: Exports) -> Case:
    weight_bits, activation_bits = request.param
    return exports.resnet(weight_bits=weight_bits, activation_bits=activation_bits)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options.values()))
def test_every_code_and_logit_equals_the_reference_and_frozen_pytorch(
    case: Case, exports: Exports, options: dict[str, Any], tmp_path: Path
) -> None:
    values = exports.check_equal(case, tmp_path / "model.onnx", **options)
    assert len(np.unique(values["logits"], axis=0)) == len(case.images)


def test_codes_use_their_range_and_weights_their_bits(case: Case) -> None:
    """Equality of tensors that are all saturated or all zero would prove little."""
    values = case.frozen_values()
    for name, module in case.frozen.named_modules():
        if isinstance(module, FrozenLayer):
            codes = module.weight_codes.numpy()
            largest = module.layer.weight_quantizer.largest_code
            assert np.abs(codes).max() <= largest, name
            assert len(np.unique(codes)) >= min(largest + 2, 20), name
            if module.y is not None:
                low, high = module.y.limits()
                levels = len(np.unique(values[name]))
                assert values[name].min() >= low, name
                assert values[name].max() <= high, name
                assert levels > 1, name
                assert levels > 20 or high < 63, name


def test_some_thresholds_lie_below_zero_and_some_gammas_are_zero_tiny_or_negative(exports: Exports) -> None:
    layers = [module for module in exports.resnet().frozen.modules() if isinstance(module, FrozenLayer)]
    norms = [layer.norm for layer in layers if isinstance(layer.norm, nn.BatchNorm2d)]
    gammas = np.concatenate([norm.weight.detach().numpy() for norm in norms])
    assert (gammas == 0).any()
    assert (gammas < 0).any()
    assert ((np.abs(gammas) < 1e-10) & (gammas != 0)).any()
    lows = {int(layer.y.low) for layer in layers if layer.y is not None}
    assert lows > {0}  # where ReLU's zero is not the lowest code


def test_float_images_off_the_grid_of_pixels_are_quantized_alike(exports: Exports, tmp_path: Path) -> None:
    case = exports.resnet()
    x = np.random.default_rng(0).normal(0, 3, (64, *case.preprocessing.shape)).astype(np.float32)
    x[0] = np.float32(case.preprocessing.scale) * (np.arange(64).reshape(1, 8, 8) + np.float32(0.5))  # ties
    x[1] = 1e30
    x[2] = -1e30
    with torch.no_grad():
        expected = case.frozen(torch.from_numpy(x)).numpy()
    for format_ in ("qlinear", "qdq"):
        path = case.export(tmp_path / "model.onnx", format=format_, input="float")
        np.testing.assert_array_equal(IntegerReference(read_model(path)).run(x), expected, strict=True)
        for level in ("extended", "all"):
            found = exports.run_runtime(onnx.load(path), x, level)["logits"]
            np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_every_batch_size_gives_the_same_logits_per_image(exports: Exports, format_: str, tmp_path: Path) -> None:
    case = exports.resnet()
    model = onnx.load(case.export(tmp_path / "model.onnx", format=format_))
    whole = exports.run_runtime(model, case.images[:21])["logits"]
    for size in (1, 3, 7):
        parts = [exports.run_runtime(model, case.images[i : i + size])["logits"] for i in range(0, 21, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole, strict=True)


@pytest.mark.parametrize("opset", [13, 17, 21, 23, 25])
@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_newer_opsets_compute_the_same(exports: Exports, opset: int, format_: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    exports.check_equal(exports.resnet(), path, weights="int8", opset=opset, format=format_)
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""] == opset


def test_overrides_mix_storages_in_one_file(exports: Exports, tmp_path: Path) -> None:
    resnet = exports.resnet()
    overrides = {
        "layer1.*": LayerOverride(weight_bits=2),
        "layer2.*": LayerOverride(weight_bits=8, activation_bits=7),
        "layer2.0.downsample.0": LayerOverride(activation_bits=3),  # wants another interval of the same tensor
        "fc": LayerOverride(weight_bits=4),
    }
    config = QuantConfig(weight_bits=4, activation_bits=4, overrides=overrides)
    case = exports.case(resnet.network, config, resnet.images, resnet.preprocessing, seed=1)
    path = tmp_path / "model.onnx"
    for format_ in ("qlinear", "qdq"):
        exports.check_equal(case, path, format=format_)
    elements = {initializer.name: initializer.data_type for initializer in onnx.load(path).graph.initializer}
    assert elements["layer1.0.conv1_weight_packed"] == TensorProto.INT2
    assert elements["layer2.0.conv1_weight"] == TensorProto.INT8
    assert elements["fc_weight_packed"] == TensorProto.INT4
    assert onnx.load(path).opset_import[0].version == 25


def test_a_layer_without_any_live_channel_exports(exports: Exports, tmp_path: Path) -> None:
    resnet = exports.resnet(weight_bits=3)
    frozen_layer = "layer2.0.conv2"
    prepared = copy.deepcopy(resnet.prepared)
    with torch.no_grad():
        prepared.get_parameter("layer2.0.bn2.weight").zero_()
    case = exports.frozen(resnet, prepared)
    assert not case.frozen.get_buffer(f"{frozen_layer}.weight_codes").any()
    for options in VARIANTS:
        exports.check_equal(case, tmp_path / "model.onnx", **options)
        names = {entry.name for entry in onnx.load(tmp_path / "model.onnx").graph.initializer}
        stored = "weight_packed" if options["weights"] == "packed" else "weight"
        assert f"{frozen_layer}_{stored}" in names


class Doubled(nn.Module):
    """Adds the result of a convolution to itself, then averages and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        logits: Tensor = self.fc(torch.flatten(self.pool(x + x), 1))
        return logits


def test_a_tensor_may_be_added_to_itself(exports: Exports, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = Preprocessing(channels=4, height=6, width=7, scale=0.02, zero_point=100)
    images = np.random.default_rng(0).integers(0, 256, (8, *pixels.shape), np.uint8)
    exports.check_equal(exports.case(Doubled(), QuantConfig(), images, pixels), tmp_path / "model.onnx")
