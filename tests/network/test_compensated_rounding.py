"""Compensated rounding: codes against a simple form of the algorithm, its inputs from layers, and its benefit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import OutputScales, QuantConfig
from qil_deploy.errors import ConfigError, UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import ROUNDINGS, Rounding, calibrate, estimate_batchnorm
from qil_deploy.network.calibrator import set_intervals
from qil_deploy.network.compensated_codes import compensated_codes, moved_codes
from qil_deploy.network.compensated_rounding import LARGEST_ROW, compensate_rounding
from qil_deploy.network.layers import QuantConv2d, QuantLinear, weight_to_quantize
from qil_deploy.network.moments import inputs_of_weights, results_of_weights
from qil_deploy.network.preparation import prepare
from qil_deploy.network.quantized_model import PreparedModel
from qil_deploy.preprocessing import Preprocessing

GRID = Preprocessing(channels=3, height=10, width=8, scale=1 / 64, zero_point=128)


class Network(nn.Module):
    """Convolutions with strides, padding, dilation and groups, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.depthwise_norm = nn.Conv2d(8, 8, 3, padding=(2, 1), groups=8), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_norm(self.first(x)).relu()
        y = self.depthwise_norm(self.depthwise(y)).relu()
        return self.head(self.grouped(y).relu().mean((2, 3)))  # type: ignore[no-any-return] # a tensor


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(5)
    result = Network()
    estimate_batchnorm(result, [images(64, 1), images(64, 2)])
    return result.eval()


def images(count: int, seed: int) -> Tensor:
    """Smooth images: neighbouring pixels are correlated, as in photographs."""
    rough = torch.randn((count, 3, 5, 4), generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(rough, (10, 8), mode="bilinear")
    return smooth.mul(64).round().clamp(-128, 127).div(64)


def quantized(
    network: nn.Module,
    rounding: Rounding,
    *,
    scales: OutputScales = "channels",
    bits: int = 3,
    method: str = "qil",
) -> PreparedModel:
    config = QuantConfig(
        weight_bits=bits,
        activation_bits=8,
        output_scales=scales,
        method=method,
        overrides={"*": {"weight_bits": bits}},
    )
    model = prepare(network, config, images(2, 0), input_grid=GRID)
    calibrate(model, [images(64, 1), images(64, 2)], float_model=network, rounding=rounding)
    return model.eval()


def difference(model: nn.Module, network: nn.Module) -> float:
    """Mean squared difference of the logits on images that were not used for calibration."""
    with torch.no_grad():
        return float((model(images(256, 3)) - network(images(256, 3))).square().mean())


def plain_codes(real: NDArray[np.float64], matrix: NDArray[np.float64], largest: int) -> NDArray[np.float64]:
    """Optimal brain surgery, weight by weight, with the remaining inverse computed anew each time."""
    left, codes = real.copy(), np.zeros_like(real)
    order = np.argsort(-np.diag(matrix), kind="stable")
    for position, i in enumerate(order):
        others = order[position:]
        inverse = np.linalg.inv(matrix[np.ix_(others, others)])
        codes[:, i] = np.rint(left[:, i]).clip(-largest, largest)
        left[:, others] -= np.outer((left[:, i] - codes[:, i]) / inverse[0, 0], inverse[0])
    return codes


def correlated(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    inputs = rng.normal(size=(3 * size, size)).cumsum(1) * rng.uniform(0.1, 1.0, size)
    return inputs.T @ inputs / len(inputs) + 1e-3 * np.eye(size)


@given(
    size=st.integers(1, 12), channels=st.integers(1, 4), largest=st.sampled_from([1, 3, 7]), seed=st.integers(0, 999)
)
def test_codes_are_those_of_the_plain_algorithm(size: int, channels: int, largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real = rng.uniform(-1.5 * largest, 1.5 * largest, (2, channels, size))
    matrices = np.stack([correlated(size, rng), correlated(size, rng)])
    found = compensated_codes(torch.from_numpy(real), torch.from_numpy(matrices), largest).numpy()
    expected = [plain_codes(real[group], matrices[group], largest) for group in range(2)]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_they_are_so_beyond_one_block_of_columns() -> None:
    rng = np.random.default_rng(7)
    real, matrix = rng.uniform(-8, 8, (3, 300)), correlated(300, rng)
    found = compensated_codes(torch.from_numpy(real[None]), torch.from_numpy(matrix[None]), 7)[0].numpy()
    np.testing.assert_array_equal(found, plain_codes(real, matrix, 7))
    nearest = np.rint(real).clip(-7, 7)
    errors = [float(np.einsum("ok,kl,ol->", e, matrix, e)) for e in (found - real, nearest - real)]
    assert errors[0] < 0.3 * errors[1]


@given(seed=st.integers(0, 999), largest=st.sampled_from([1, 7]))
def test_inputs_without_correlation_leave_each_weight_its_nearest_code(seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    real = torch.from_numpy(rng.uniform(-10, 10, (1, 3, 5)))
    matrix = torch.diag(torch.from_numpy(rng.uniform(0.1, 3.0, 5)))[None]
    assert torch.equal(compensated_codes(real, matrix, largest), real.round().clamp(-largest, largest))


@given(
    size=st.integers(1, 12), channels=st.integers(1, 4), largest=st.sampled_from([1, 3, 7]), seed=st.integers(0, 999)
)
def test_moved_codes_are_in_range_and_each_is_the_best_beside_the_others(
    size: int, channels: int, largest: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    real = rng.uniform(-1.5 * largest, 1.5 * largest, (1, channels, size))
    matrix = correlated(size, rng)[None]
    start = compensated_codes(torch.from_numpy(real), torch.from_numpy(matrix), largest)
    kept = start.clone()
    found = moved_codes(start, torch.from_numpy(real), torch.from_numpy(matrix), largest).numpy()
    assert torch.equal(start, kept)
    np.testing.assert_array_equal(found, np.rint(found).clip(-largest, largest))

    def error(codes: NDArray[np.float64]) -> float:
        return float(((codes - real) @ matrix * (codes - real)).sum())

    assert error(found) <= error(kept.numpy()) * (1 + 1e-12)
    again = moved_codes(torch.from_numpy(found), torch.from_numpy(real), torch.from_numpy(matrix), largest)
    if torch.equal(again, torch.from_numpy(found)):  # it has come to rest
        for channel in range(channels):
            for i in range(size):
                others = np.repeat(found[0, channel][None], 2 * largest + 1, 0)
                others[:, i] = np.arange(-largest, largest + 1)
                errors = np.einsum("nk,kl,nl->n", others - real[0, channel], matrix[0], others - real[0, channel])
                assert errors.min() >= errors[int(found[0, channel, i]) + largest] - 1e-9 * errors.max()


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    pads=st.sampled_from([None, (1, 0, 2, 3)]),
)
def test_inputs_of_weights_times_weights_are_the_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    pads: tuple[int, int, int, int] | None,
) -> None:
    layer = QuantConv2d(4, 8, kernel, stride, (0, 0) if pads else padding, dilation, groups, bias=False)
    layer.pads = pads
    x = torch.randint(-8, 8, (2, 4, 5, 5)).float()
    weight = torch.randint(-4, 4, layer.weight.shape).float()
    with torch.no_grad():
        layer.weight.copy_(weight)
        expected = nn.Conv2d.forward(layer, F.pad(x, (pads[1], pads[3], pads[0], pads[2])) if pads else x)
    chosen = torch.randperm(expected[0, 0].numel())
    found = inputs_of_weights(layer, x, chosen)
    by_weight = found @ weight.reshape(groups, 8 // groups, -1).transpose(1, 2)  # [G, N * P, C_out / G]
    # Whole numbers, so that every order of adding is exact.
    assert torch.equal(by_weight, results_of_weights(layer, expected, chosen))
    sums = by_weight.transpose(1, 2).reshape(8, 2, -1).transpose(0, 1)
    assert torch.equal(sums.sort(2).values, expected.flatten(2).sort(2).values)


@pytest.mark.parametrize("method", ["qil", "lsq"])
@pytest.mark.parametrize("scales", ["without_batchnorm", "all", "channels"])
def test_logits_come_closer_to_those_of_the_float_network(network: Network, scales: OutputScales, method: str) -> None:
    nearest, compensated = (
        difference(quantized(network, rounding, scales=scales, method=method), network)
        for rounding in ("nearest", "compensated")
    )
    assert compensated < 0.8 * nearest


@pytest.mark.parametrize("scales", ["without_batchnorm", "all", "channels"])
def test_layers_make_up_for_what_those_before_them_got_wrong(network: Network, scales: OutputScales) -> None:
    config = QuantConfig(weight_bits=3, activation_bits=3, output_scales=scales, overrides={"*": {"weight_bits": 3}})
    batches = [images(64, 1), images(64, 2)]
    errors = []
    for reference in (None, network):  # layers are asked for what their own weights give, or for what float layers give
        model = prepare(network, config, images(2, 0), input_grid=GRID)
        set_intervals(model, batches, float_model=network)
        compensate_rounding(model, batches, None, reference)
        set_intervals(model, batches, float_model=network)
        with torch.no_grad():
            errors.append(float(sum((model.eval()(x) - network(x)).square().sum() for x in batches)))
    assert errors[1] < 0.85 * errors[0]


def test_it_needs_no_float_network_where_scales_need_none(network: Network) -> None:
    errors = []
    for rounding in ROUNDINGS:
        model = prepare(network, QuantConfig(weight_bits=3, activation_bits=8), images(2, 0), input_grid=GRID)
        calibrate(model, [images(64, 1), images(64, 2)], rounding=rounding)
        errors.append(difference(model.eval(), network))
    assert errors[1] < errors[0]


class Gated(nn.Module):
    """A gate, a transposed convolution, rows of pixels, a concatenation, and an addition; one map per class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.gate, self.mixed = nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.norm(self.stem(x)))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y = y + self.mixed(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(torch.cat([self.up(y).relu(), x], 1))  # type: ignore[no-any-return] # a tensor


def test_layers_of_every_kind_are_rounded() -> None:
    torch.manual_seed(1)
    network = Gated()
    estimate_batchnorm(network, [images(64, 1)])
    nearest, compensated = (quantized(network.eval(), rounding) for rounding in ROUNDINGS)
    assert difference(compensated, network) < difference(nearest, network)
    changed = [
        name
        for name, value in nearest.state_dict().items()
        if name.endswith(".weight") and not torch.equal(value, compensated.state_dict()[name])
    ]
    assert {name.split(".")[0] for name in changed} >= {"stem", "gate", "mixed", "up", "head"}


class Tied(nn.Module):
    """Two convolutions with one tensor of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))  # type: ignore[no-any-return] # a tensor


def test_weights_that_layers_share_are_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    network = Tied().eval()
    model = quantized(network, "compensated")
    assert model.get_parameter("a.weight") is model.get_parameter("b.weight")
    assert torch.equal(model.get_parameter("a.weight"), network.a.weight)
    assert not torch.equal(model.get_parameter("head.weight"), network.head.weight)


def test_weights_are_in_the_middle_of_their_codes(network: Network) -> None:
    model = quantized(network, "compensated")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}
    seen = 0
    for name, layer in layers.items():
        if not name.startswith(("first", "depthwise", "grouped", "head")):
            continue  # the average pooling's
        seen += 1
        codes = layer.weight_quantizer.codes_real(weight_to_quantize(layer)).detach()
        assert float((codes - codes.round()).abs().max()) < 1e-3, name
        assert not torch.equal(layer.weight, network.get_parameter(f"{name}.weight")), name
    assert seen == 4


def test_the_same_data_give_the_same_weights_and_leave_modes_and_batches_alone(network: Network) -> None:
    model = prepare(network, QuantConfig(output_scales="channels"), images(2, 0), input_grid=GRID)
    model.train()
    batch = images(16, 1)
    kept = batch.clone()
    calibrate(model, [batch], float_model=network, rounding="compensated")
    assert model.training
    assert torch.equal(batch, kept)
    again = prepare(network, QuantConfig(output_scales="channels"), images(2, 0), input_grid=GRID)
    calibrate(again, [batch], float_model=network, rounding="compensated")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_only_the_named_layers_change(network: Network) -> None:
    model = prepare(network, QuantConfig(output_scales="channels"), images(2, 0), input_grid=GRID)
    calibrate(model, [images(16, 1)], float_model=network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, [images(16, 1)], float_model=network, rounding="compensated", only=["grouped"])
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert "grouped.weight" in changed
    assert changed <= {f"grouped.{name}" for name in ("weight", "channel_sizes", "log_output_scale", "output_shift")}


def test_the_frozen_network_has_the_same_codes(network: Network) -> None:
    model = quantized(network, "compensated", bits=4)
    frozen = freeze(model)
    nearest = freeze(quantized(network, "nearest", bits=4))
    assert difference(frozen, network) < difference(nearest, network)


def test_a_row_that_is_too_long_is_rounded_to_nearest(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST_ROW > 25088 // 2
    monkeypatch.setattr("qil_deploy.network.compensated_rounding.LARGEST_ROW", 20)
    model = quantized(network, "compensated")
    assert torch.equal(model.get_parameter("first.weight"), network.first.weight)  # rows of 27
    assert not torch.equal(model.get_parameter("depthwise.weight"), network.depthwise.weight)


@pytest.mark.parametrize("scales", ["all", "channels"])
def test_intervals_stay_where_layers_are_led_by_the_float_network(
    network: Network, scales: OutputScales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qil_deploy.network.compensated_rounding.LARGEST_ROW", 23)  # `first` and `grouped` have more
    nearest, compensated = (quantized(network, rounding, scales=scales).state_dict() for rounding in ROUNDINGS)
    changed = {name for name, value in nearest.items() if not torch.equal(value, compensated[name])}
    assert {name.rpartition(".")[2] for name in changed} <= {
        "weight",
        "channel_sizes",
        "log_output_scale",
        "output_shift",
    }
    assert "grouped.weight" not in changed
    assert "grouped.log_output_scale" in changed  # it suits what the layer reads now


def test_layers_are_seen_to_in_portions(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = quantized(network, "compensated").state_dict()
    monkeypatch.setattr("qil_deploy.network.compensated_rounding._BYTES_AT_ONCE", 1)
    monkeypatch.setattr("qil_deploy.network.layer_inputs._KEPT_BYTES", 1)
    for name, value in quantized(network, "compensated").state_dict().items():
        assert value.shape == at_once[name].shape, name
    assert difference(quantized(network, "compensated"), network) < difference(quantized(network, "nearest"), network)


def test_another_rounding_is_refused(network: Network) -> None:
    model = prepare(network, QuantConfig(), images(2, 0), input_grid=GRID)
    with pytest.raises(ConfigError, match=r"rounding='up'; choose 'nearest' or 'compensated'"):
        calibrate(model, [images(8, 1)], rounding="up")  # type: ignore[arg-type] # that is the point


def test_intervals_that_have_learned_are_refused(network: Network) -> None:
    model = quantized(network, "nearest")
    layer = model.get_submodule("grouped")
    assert isinstance(layer, QuantConv2d)
    with torch.no_grad():
        layer.weight_quantizer.get_parameter("center_ratio").add_(0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        UnsupportedModelError, match=r"layer 'grouped': the interval of its weights is \[0\.0.*training"
    ):
        calibrate(model, [images(8, 1)], float_model=network, rounding="compensated")
    assert torch.equal(model.state_dict()["first.weight"], before["first.weight"])
