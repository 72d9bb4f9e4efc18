"""Functions that take batches accept any iterable of them, and refuse anything else before they change anything."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.freezing_report import compare_freezing, predictions
from qil_deploy.network.batches import checked_batches
from qil_deploy.network.bit_widths import change_bits
from qil_deploy.network.calibration import calibrate, estimate_batchnorm
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.pictures.interval_shares import activation_values

if TYPE_CHECKING:
    from tests.trained_digits import Digits

State = dict[str, Tensor]


def state_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def calibrated(digits: Digits) -> fx.GraphModule:
    model = digits.prepare(4)
    calibrate(model, digits.batches()[:2])
    return model


def after_calibrate(digits: Digits, batches: Iterable[Any]) -> State:
    model = digits.prepare(4)
    calibrate(model, batches)
    return state_of(model)


def after_calibrate_by_float(digits: Digits, batches: Iterable[Any]) -> State:
    model = digits.prepare(4)
    calibrate(model, batches, float_model=digits.network)
    return state_of(model)


def after_estimate(digits: Digits, batches: Iterable[Any]) -> State:
    model = calibrated(digits)
    estimate_batchnorm(model, batches)
    return state_of(model)


def after_estimate_of_a_float_network(digits: Digits, batches: Iterable[Any]) -> State:
    network = copy.deepcopy(digits.network)
    estimate_batchnorm(network, batches)
    return state_of(network)


def after_change_bits(digits: Digits, batches: Iterable[Any]) -> State:
    config = QuantConfig(weight_bits=2, activation_bits=3)
    return state_of(change_bits(calibrated(digits), digits.network, config, batches, input_grid=digits.preprocessing))


FUNCTIONS: dict[str, Callable[[Digits, Iterable[Any]], State]] = {
    "calibrate": after_calibrate,
    "calibrate by the float network": after_calibrate_by_float,
    "estimate_batchnorm": after_estimate,
    "estimate_batchnorm of a float network": after_estimate_of_a_float_network,
    "change_bits": after_change_bits,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_iterable_of_batches_does_the_same(function: str, digits: Digits) -> None:
    batches = digits.batches()[:2]
    pairs = [(batch, digits.labels[: len(batch)]) for batch in batches]
    run = FUNCTIONS[function]
    expected = run(digits, batches)
    forms: dict[str, Iterable[Any]] = {
        "generator": (batch for batch in batches),
        "tuple": tuple(batches),
        "iterator": iter(batches),
        "islice": itertools.islice(itertools.cycle(batches), 2),
        "loader of images and labels": DataLoader(pairs, batch_size=None),  # type: ignore[arg-type] # a list will do
        "pairs": [(batch, None) for batch in batches],
        "lists": [[batch, "a", "b"] for batch in batches],
    }
    for form, given in forms.items():
        found = run(digits, given)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=lambda text: f"{form}: {text}")  # noqa: B023


def with_value(batch: Tensor, value: float) -> Tensor:
    changed = batch.clone()
    changed[1, 0, 3, 3] = value
    return changed


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nothing": (lambda _x: [], "needs at least one batch of images"),
    "an exhausted generator": (lambda _x: iter([]), "a generator that was used before has none left"),
    "one tensor": (lambda x: x, r"takes an iterable of batches, but got a tensor of shape \[128, 1, 8, 8\]; put a sin"),
    "a dict": (lambda x: {"image": x}, "takes an iterable of batches, but got dict"),
    "a number": (lambda _x: 3, "takes an iterable of batches, but got int"),
    "a path": (lambda _x: "images/", "takes an iterable of batches, but got str"),
    "images one by one": (
        list,
        r"batch 0 has shape \[1, 8, 8\]; the network takes \[N, (1, 8, 8|C, H, W)\]",
    ),
    "uint8": (
        lambda x: [x, (x * 50).to(torch.uint8)],
        "batch 1 is uint8, but the network takes float32; preprocessing.normalize makes them from uint8 pixels",
    ),
    "half": (lambda x: [x.half()], "batch 0 is float16, but the network takes float32; cast it"),
    "double": (lambda x: [x.double()], "batch 0 is float64, but the network takes float32; cast it"),
    "arrays": (lambda x: [x.numpy()], "batch 0 is of type 'ndarray'; give tensors of images, or tuples that begin"),
    "dicts": (lambda x: [{"image": x}], "batch 0 is of type 'dict'"),
    "labels first": (lambda x: [(torch.zeros(len(x), dtype=torch.int64), x)], "batch 0 is int64, but the network"),
    "empty": (lambda x: [x, x[:0]], "batch 1 is empty; leave it out"),
    "not a number": (lambda x: [x, with_value(x, float("nan"))], "batch 1 has NaN or infinity in 1 of 8,192 values"),
    "infinite": (lambda x: [with_value(x, float("-inf"))], "batch 0 has NaN or infinity in 1 of 8,192 values"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_batch_is_refused(function: str, case: str, digits: Digits) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        FUNCTIONS[function](digits, make(digits.batches()[0]))


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 9, 8), (4, 1, 8, 16), (4, 1, 8), (4, 64)])
@pytest.mark.parametrize("function", ["calibrate", "estimate_batchnorm", "change_bits"])
def test_another_shape_than_the_model_was_prepared_for_is_refused(
    function: str, shape: tuple[int, ...], digits: Digits
) -> None:
    """Larger images would run, too: the window of a global pooling is that of the example."""
    with pytest.raises(
        DataError, match=r"batch 0 has shape \[4, .*\]; the network takes \[N, 1, 8, 8\], N images each"
    ):
        FUNCTIONS[function](digits, [torch.zeros(shape)])


def test_a_float_network_says_itself_what_does_not_fit(digits: Digits) -> None:
    network = copy.deepcopy(digits.network)
    before = state_of(network)
    with pytest.raises(
        DataError, match=r"statistics: the network does not run on batch 1, of shape \[4, 3, 8, 8\]: Giv"
    ):
        estimate_batchnorm(network, [digits.images[:4], torch.zeros(4, 3, 8, 8)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(network).items())


@pytest.mark.parametrize("case", ["uint8", "not a number", "empty"])
def test_a_refusal_changes_nothing(case: str, digits: Digits) -> None:
    model = digits.prepare(4)
    before = state_of(model)
    with pytest.raises(DataError):
        calibrate(model, REFUSED[case][0](digits.batches()[0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    assert not bool(model.get_buffer("calibrated"))


def test_an_interrupt_leaves_statistics_and_momentum(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise training would continue with means of 0, variances of 1 and an invalid momentum."""
    model = calibrated(digits)
    before, calls = state_of(model), itertools.count()

    def forward(images: Tensor) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(images)

    original = model.forward
    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        estimate_batchnorm(model, digits.batches())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1, 0.1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())


def test_a_norm_that_is_not_called_keeps_its_statistics() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(x)
            return result

    network = Unused()
    assert network.other.running_mean is not None
    assert network.norm.running_mean is not None
    network.other.running_mean.fill_(3.0)
    estimate_batchnorm(network, [torch.ones(2, 2, 1, 1)])
    assert network.other.running_mean.tolist() == [3.0, 3.0]
    assert network.norm.running_mean.tolist() == [1.0, 1.0]


def test_more_than_memory_should_hold_is_refused(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qil_deploy.network.batches._MOST_BYTES", 100_000)
    with pytest.raises(DataError, match=r"the first 4 have 131,072 bytes; .*itertools.islice\(batches, 8\)"):
        calibrate(digits.prepare(4), itertools.repeat(digits.images[:128]))


def test_batches_of_a_model_in_another_type_have_that_type(digits: Digits) -> None:
    model = digits.prepare(4).double()
    calibrate(model, [batch.double() for batch in digits.batches()])
    with pytest.raises(DataError, match="batch 0 is float32, but the network takes float64"):
        calibrate(model, digits.batches())


def test_images_whose_values_overflow_in_the_network_are_refused(digits: Digits) -> None:
    model = digits.prepare(4, "paper")
    with torch.no_grad():
        model.get_parameter("norm0.weight").fill_(3e38)
    with pytest.raises(
        DataError, match=r"calibration: values that reach 'intervals\.\w+' are NaN or infinite, although"
    ):
        calibrate(model, [digits.images[:4]])


def test_activation_values_take_images_of_the_model(digits: Digits) -> None:
    model = calibrated(digits)
    for images, message in (
        (digits.images[:0], "activation_values: batch 0 is empty"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "batch 0 is uint8"),
        (torch.zeros(4, 1, 9, 9), r"batch 0 has shape \[4, 1, 9, 9\]; the network takes \[N, 1, 8, 8\]"),
    ):
        with pytest.raises(DataError, match=message):
            activation_values(model, images)


def test_models_refuse_raw_pixels(digits: Digits) -> None:
    """They would be treated as normalised values, and clipped to white."""
    model, pixels = calibrated(digits), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    for each in (model.train(), model.eval(), freeze(model)):
        with pytest.raises(DataError, match="takes images as float32, but these are uint8; preprocessing"):
            each(pixels)


def test_a_frozen_model_refuses_images_of_another_size(digits: Digits) -> None:
    """It would divide by the window of its original global pooling."""
    frozen = freeze(calibrated(digits))
    with pytest.raises(DataError, match=r"takes images \[N, 1, 8, 8\], but these are \[2, 1, 16, 16\]"):
        frozen(torch.zeros(2, 1, 16, 16))


def test_predictions_come_by_the_preprocessing_of_the_model(digits: Digits) -> None:
    model, images = calibrated(digits), load_images("digits", "test")
    other = replace(digits.preprocessing, zero_point=3)
    for each in (model, freeze(model)):
        with pytest.raises(DataError, match=r"the model was prepared with Preprocessing\(.*zero_point=3, .*\)"):
            predictions(each, images.images, other)
    nothing = replace(images, images=images.images[:0], labels=images.labels[:0])
    with pytest.raises(DataError, match="the cost of freezing cannot be measured on digits: it has no images"):
        compare_freezing(model, freeze(model), "digits", nothing, digits.preprocessing)


def test_a_frozen_model_keeps_its_statistics(digits: Digits) -> None:
    with pytest.raises(
        UnsupportedModelError, match="the model is frozen already; give estimate_batchnorm the prepared"
    ):
        estimate_batchnorm(freeze(calibrated(digits)), digits.batches())


def test_batches_go_to_the_device_of_the_model() -> None:
    model = nn.Conv2d(1, 1, 1, device="meta")
    (batch,) = checked_batches([torch.zeros(2, 1, 4, 4)], "test", model)
    assert batch.device.type == "meta"
    assert np.shape(batch) == (2, 1, 4, 4)


@pytest.mark.parametrize(("mean", "std"), [(0.13, 0.31), (0.5, 0.5), ((0.485,), (0.229,)), (0.0, 1.0)])
def test_pixels_that_were_never_normalised_are_refused(
    digits: Digits, mean: float | tuple[float], std: float | tuple[float]
) -> None:
    grid = Preprocessing.from_statistics((1, 8, 8), mean, std)
    pixels = np.stack([np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 255, np.uint8)])
    raw, normalised = torch.from_numpy(pixels).float(), torch.from_numpy(grid.normalize(pixels))
    found = rf"has values from 0 to 255, but pixels are normalised to {normalised.min():.6g} to {normalised.max():.6g}"
    config = QuantConfig(weight_bits=4, activation_bits=4)
    with pytest.raises(DataError, match=f"^example_input {found}"):
        prepare(digits.network, config, raw, input_grid=grid)
    model = prepare(digits.network, config, normalised, input_grid=grid)
    before = state_of(model)
    with pytest.raises(DataError, match=f"^calibration: batch 1 {found}"):
        calibrate(model, [normalised, raw])
    with pytest.raises(DataError, match=f"^calibration from the first batch: batch 0 {found}"):
        model.train()(raw)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    calibrate(model, [normalised, 3.0 * normalised])


@hypothesis.given(mean=st.floats(0, 1), std=st.floats(0.01, 100), channels=st.integers(1, 3))
def test_every_normalised_pixel_is_in_the_input_range(mean: float, std: float, channels: int) -> None:
    for statistics in ((mean, std), ([mean] * channels, [std * (each + 1) for each in range(channels)])):
        grid = Preprocessing.from_statistics((channels, 1, 256), *statistics)
        values = grid.normalize(np.broadcast_to(np.arange(256, dtype=np.uint8), (1, channels, 1, 256)).copy())
        np.testing.assert_array_equal(grid.input_range, [values.min(), values.max()])
