"""Shares of pruned and clipped values against NumPy, for weights, intervals and 8-bit ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from qil_deploy.config import QuantConfig
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.layers import QuantConv2d
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import QilActivationQuantizer, QilWeightQuantizer, RangeQuantizer
from qil_deploy.training.models.build import build_model
from qil_deploy.training.pictures.interval_shares import activation_values, input_quantizers, weight_values

INTERVAL, RANGE, LAYER = "intervals.layer1_0_conv2", "ranges.layer1_0_bn2", "layer1.0.conv2"


@pytest.fixture
def model() -> fx.GraphModule:
    """Intervals that prune and clip, and an 8-bit range that is too small."""
    grid = Preprocessing.from_statistics((1, 8, 8), 0.3, 0.4)
    config = QuantConfig(weight_bits=3, activation_bits=2, train_gamma=True)
    network = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4})
    result = prepare(network, config, torch.zeros(1, 1, 8, 8), input_grid=grid).eval()
    calibrate(result, [torch.randn(32, 1, 8, 8)])
    layer, interval, stream = (result.get_submodule(name) for name in (LAYER, INTERVAL, RANGE))
    assert isinstance(layer, QuantConv2d)
    assert isinstance(interval, QilActivationQuantizer)
    assert isinstance(stream, RangeQuantizer)
    assert isinstance(layer.weight_quantizer, QilWeightQuantizer)
    layer.weight_quantizer.set_thresholds(0.05, 0.2)
    assert layer.weight_quantizer.gamma_raw is not None
    layer.weight_quantizer.gamma_raw.data.fill_(0.5)
    interval.set_thresholds(0.1, 0.7)
    stream.set_largest(0.5)
    return result


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def seen_by(model: fx.GraphModule, quantizer: str, x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Values that a forward hook finds at the quantizer's input."""
    seen: list[Tensor] = []
    hook = model.get_submodule(quantizer).register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return torch.cat(seen).numpy()


def test_shares_of_weights(model: fx.GraphModule) -> None:
    (found,) = [values for values in weight_values(model) if values.name == LAYER]
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, QuantConv2d)
    magnitudes = np.abs(layer.weight.detach().numpy())
    lower, upper = np.array(layer.weight_quantizer.thresholds, np.float32)
    gamma = np.exp(2 * np.tanh(0.25))
    codes = np.rint(3 * np.clip((magnitudes - lower) / (upper - lower), 0, 1) ** gamma)
    assert (found.pruned, found.clipped) == ((magnitudes < lower).mean(), (magnitudes > upper).mean())
    assert found.zero == (codes == 0).mean()
    assert found.gamma == pytest.approx(gamma, rel=1e-6)
    assert 0 < found.pruned < found.zero
    assert found.clipped > 0
    assert found.bits == 3
    np.testing.assert_array_equal(found.sample, layer.weight.detach().numpy().reshape(-1))


@pytest.mark.parametrize("count", [1, 32, 70])  # one batch and several, the last one smaller
def test_shares_of_activations(model: fx.GraphModule, count: int) -> None:
    x = images(count)
    found = activation_values(model, x)
    quantizer = model.get_submodule(INTERVAL)
    assert isinstance(quantizer, QilActivationQuantizer)
    values, (lower, upper) = seen_by(model, INTERVAL, x), np.array(quantizer.thresholds, np.float32)
    interval = found[INTERVAL]
    assert (interval.pruned, interval.clipped) == ((values < lower).mean(), (values > upper).mean())
    assert interval.zero == (np.rint(3 * np.clip((values - lower) / (upper - lower), 0, 1)) == 0).mean()
    assert 0 < interval.clipped < interval.pruned < interval.zero
    assert interval.bits == 2

    values, outside = seen_by(model, RANGE, x), found[RANGE]
    step = np.float32(0.5 / 127)
    assert outside.clipped == ((values < -128 * step) | (values > 127 * step)).mean()
    assert outside.clipped > 0
    assert (outside.pruned, outside.bits) == (0, 8)


def test_samples_are_bounded_repeatable_and_of_the_values(
    model: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qil_deploy.training.pictures.interval_shares.SAMPLES", 90)
    x = images(70)
    first, second = (activation_values(model, x)[INTERVAL].sample for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (90,)
    assert np.isin(first, seen_by(model, INTERVAL, x)).all()
    assert all(len(values.sample) <= 90 for values in weight_values(model))


def test_each_layer_knows_the_quantizer_that_it_reads(model: fx.GraphModule) -> None:
    sources = input_quantizers(model)
    assert sources["conv1"] == "input_quantizer"
    assert sources["layer2.0.conv1"] == sources["layer2.0.downsample.0"] == "intervals.layer2_0_conv1"
    assert sources["fc"] == "ranges.pool"  # behind Flatten
    assert sources.keys() == {values.name for values in weight_values(model)}
    assert set(sources.values()) <= activation_values(model, images(1)).keys()


def test_layers_behind_a_concatenation_read_its_shared_quantizer() -> None:
    network = build_model("squeezenet1_1", {"in_channels": 3, "num_classes": 10})
    grid = Preprocessing.from_statistics((3, 32, 32), 0.3, 0.4)
    config = QuantConfig(weight_bits=4, activation_bits=4)
    model = prepare(network, config, torch.zeros(1, 3, 32, 32), input_grid=grid).eval()
    calibrate(model, [torch.randn(2, 3, 32, 32)])
    assert set(input_quantizers(model).values()) <= activation_values(model, torch.randn(1, 3, 32, 32)).keys()
