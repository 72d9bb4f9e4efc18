"""Calibration: intervals from data bring a prepared model close to the float one before any training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.network.calibration import calibrate
from qil_deploy.quantizers import ActivationQuantizer, RangeQuantizer, best_threshold

if TYPE_CHECKING:
    from tests.trained_digits import Digits


@torch.no_grad()
def agreement(digits: Digits, model: nn.Module) -> tuple[float, float]:
    """Share of equal predictions with the float network, and the relative error of the logits, on fresh images."""
    x = digits.fresh()
    found, expected = model(x), digits.network(x)
    same = (found.argmax(1) == expected.argmax(1)).float().mean()
    return float(same), float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("placement", ["integer", "paper"])
@pytest.mark.parametrize(("bits", "same", "error"), [(8, 0.98, 0.03), (6, 0.96, 0.05), (4, 0.92, 0.15), (2, 0.7, 0.5)])
def test_a_calibrated_model_is_close_to_the_float_one(
    digits: Digits, placement: str, bits: int, same: float, error: float
) -> None:
    model = digits.prepare(bits, placement)
    calibrate(model, digits.batches())
    found = agreement(digits, model.eval())
    assert found[0] >= same
    assert found[1] <= error


def test_calibration_is_what_brings_it_there(digits: Digits) -> None:
    model = digits.prepare(8).eval()
    model.get_buffer("calibrated").fill_(True)  # otherwise it would refuse
    assert agreement(digits, model)[1] > 0.5


def test_thresholds_are_the_geometric_mean_of_the_best_of_each_batch(digits: Digits) -> None:
    model = digits.prepare(4)
    calibrate(model, digits.batches())
    seen: list[Tensor] = []
    (interval,) = (m for name, m in model.named_modules() if name == "intervals.conv1")
    assert isinstance(interval, ActivationQuantizer)
    interval.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.train()
        for batch in digits.batches():
            model.eval()
            model.get_submodule("norm0").train()
            model(batch)
    # The range before it moved a little from batch to batch, so this is not exact.
    expected = np.exp(np.mean([np.log(best_threshold(x.clamp_min(0), 15)) for x in seen]))
    lower, upper = interval.thresholds
    assert lower == pytest.approx(0.0, abs=1e-6)
    assert upper == pytest.approx(expected, rel=0.05)


def test_norms_take_the_statistics_of_the_quantized_network(digits: Digits) -> None:
    model = digits.prepare(4)
    calibrate(model, digits.batches())
    norm = model.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum == 0.1
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        for batch in digits.batches():
            model(batch)
    torch.testing.assert_close(
        norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), rtol=0.1, atol=0.01
    )


def test_calibration_repeats_and_keeps_the_mode(digits: Digits) -> None:
    model = digits.prepare(4).train()
    again = copy.deepcopy(model)
    calibrate(model, digits.batches())
    calibrate(again, digits.batches())
    assert model.training
    assert bool(model.get_buffer("calibrated"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    calibrate(model.eval(), digits.batches()[:1])
    assert not any(module.training for module in model.modules())


def test_the_first_training_batch_calibrates_and_later_ones_do_not(digits: Digits) -> None:
    model, by_hand = digits.prepare(4), digits.prepare(4)
    calibrate(by_hand, [digits.images[:128]])
    with torch.no_grad():
        with pytest.raises(
            UnsupportedModelError, match=r"intervals were never set, .* call calibrate\(model, batches\)"
        ):
            model.eval()(digits.images[:128])
        assert not bool(model.get_buffer("calibrated"))
        model.train()(digits.images[:128])
    assert bool(model.get_buffer("calibrated"))
    quantizers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer | RangeQuantizer)
    }
    before = {name: {key: value.clone() for key, value in q.state_dict().items()} for name, q in quantizers.items()}
    for name, state in before.items():
        for key, value in state.items():
            assert torch.equal(value, by_hand.get_submodule(name).state_dict()[key])
    with torch.no_grad():
        model(3 * digits.images[:128])
    for name, quantizer in quantizers.items():
        for key, value in quantizer.state_dict().items():
            assert torch.equal(value, before[name][key])


def test_a_model_without_images_cannot_be_calibrated(digits: Digits) -> None:
    with pytest.raises(DataError, match="calibration needs at least one batch of images"):
        calibrate(digits.prepare(4), [])


def test_dead_activations_get_some_interval(digits: Digits) -> None:
    model = digits.prepare(4)
    calibrate(model, [torch.zeros(8, 1, 8, 8)])
    with torch.no_grad():
        assert torch.isfinite(model(digits.images[:8])).all()
