"""`output_scales="channels"`: every channel has a scale and a shift, set to match the float network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qil_deploy.config import OutputScales, QuantConfig
from qil_deploy.errors import UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.bit_widths import change_bits
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.layers import QuantConv2d
from qil_deploy.network.preparation import prepare
from qil_deploy.network.quantized_model import PreparedModel
from qil_deploy.preprocessing import Preprocessing

GRID = Preprocessing(channels=3, height=8, width=8, scale=1 / 64, zero_point=128)


class Bottleneck(nn.Module):
    """A convolution whose result, negative values included, is read by one with channels of very unequal size."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.wide, self.wide_norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide_norm(self.wide(self.norm(self.narrow(x)))).relu()
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return] # a tensor


@pytest.fixture
def network() -> Bottleneck:
    torch.manual_seed(3)
    result = Bottleneck().eval()
    with torch.no_grad():
        result.norm.running_mean += torch.tensor([-0.5, 0.2, 1.0, -1.0])  # type: ignore[operator] # a tensor
        result.wide.weight *= torch.tensor([1.0, 1e-3, 0.1, 0.01, 2.0, 0.0])[:, None, None, None]
    return result


def images(count: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator).sub(128).mul(1 / 64)


def quantized(network: nn.Module, scales: OutputScales, bits: int = 8) -> PreparedModel:
    config = QuantConfig(weight_bits=min(bits, 7), activation_bits=bits, output_scales=scales)
    model = prepare(network, config, images(1), input_grid=GRID)
    calibrate(model, [images()], float_model=network)
    return model.eval()


def difference(model: nn.Module, network: nn.Module) -> float:
    with torch.no_grad():
        expected = network(images())
        return float((model(images()) - expected).abs().max() / expected.abs().max())


def test_layers_that_read_negative_values_keep_their_constant(network: Bottleneck) -> None:
    """A scale alone cannot compensate that code 0 represents the lower end of an interval."""
    by_layer, by_channel = (difference(quantized(network, scales), network) for scales in ("all", "channels"))
    assert by_layer > 0.3
    assert by_channel < 0.02


def test_each_channel_has_the_mean_and_the_slope_of_the_float_layer(network: Bottleneck) -> None:
    found: dict[str, Tensor] = {}
    model = quantized(network, "channels", bits=4)
    for name, owner in (("float", network), ("quantized", model)):
        owner.get_submodule("wide").register_forward_hook(
            lambda _layer, _inputs, result, name=name: found.update({name: result.detach().double()})
        )
    with torch.no_grad():
        network(images())
        model(images())
    sums, wanted = (found[name].transpose(0, 1).flatten(1) for name in ("quantized", "float"))
    torch.testing.assert_close(sums.mean(1), wanted.mean(1), rtol=0, atol=1e-5)
    # Least squares leave an error that has nothing in common with the sums.
    centred = sums - sums.mean(1, keepdim=True)
    slopes = (centred * (wanted - sums)).sum(1) / centred.square().sum(1).clamp_min(1e-12)
    assert float(slopes.abs().max()) < 1e-4


def test_codes_of_small_channels_are_as_fine_as_those_of_large_ones(network: Bottleneck) -> None:
    layer = quantized(network, "channels").get_submodule("wide")
    assert isinstance(layer, QuantConv2d)
    assert layer.channel_sizes is not None
    found = layer.weight_quantizer.codes_real(layer.weight / layer.channel_sizes).round().abs().amax((1, 2, 3))
    assert int(found[:-1].min()) > 40  # of 63; one scale for all would leave the second channel none
    assert int(found[-1]) == 0


def test_weights_and_norms_stay_bit_for_bit(network: Bottleneck) -> None:
    state = quantized(network, "channels").state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], value), name


def test_the_float_network_is_needed(network: Bottleneck) -> None:
    model = prepare(network, QuantConfig(output_scales="channels"), images(1), input_grid=GRID)
    with pytest.raises(UnsupportedModelError, match=r"call calibrate\(model, batches, float_model=network\)"):
        calibrate(model, [images()])
    with pytest.raises(UnsupportedModelError, match="float_model=network"):
        model.train()(images())


def test_other_bits_are_fitted_anew(network: Bottleneck) -> None:
    config = QuantConfig(weight_bits=7, activation_bits=8, output_scales="channels")
    changed = change_bits(quantized(network, "channels", bits=3), network, config, [images()], input_grid=GRID)
    assert difference(changed, network) < 0.02


def test_the_frozen_model_is_near(network: Bottleneck) -> None:
    model = quantized(network, "channels")
    assert difference(freeze(model), network) < 0.03
