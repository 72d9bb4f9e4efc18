"""The captured network computes the same as the caller's, in both modes; if not, it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.network.capture import capture_network
from qil_deploy.network.preparation import prepare
from qil_deploy.network.same_function import require_same_function
from qil_deploy.quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer, WeightQuantizer

from .prepared_network import GRID, prepared, resnet8


class Small(nn.Module):
    """A stem, two readers of it, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.fc(self.mixed(x).mean((2, 3)))
        return logits

    def mixed(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv(x)
        return result


class InPlaceAlias(Small):
    def mixed(self, x: Tensor) -> Tensor:
        y = self.relu(x)  # x is changed, too
        result: Tensor = x + self.conv(y)
        return result


class NormalizesByNumbers(Small):
    def mixed(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.training else x


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return the results of a prepared model without its roundings."""
    for module in model.modules():
        if isinstance(module, WeightQuantizer | ActivationQuantizer | RangeQuantizer | InputQuantizer):
            module.forward = lambda value: value  # type: ignore[method-assign] # without rounding nothing changes
    model.get_buffer("calibrated").fill_(True)
    with torch.no_grad():
        result: Tensor = model.eval()(x)
    return result


def test_an_alias_of_what_is_written_in_place_is_what_was_written() -> None:
    network, x = InPlaceAlias().eval(), torch.randn(4, *GRID.shape)
    with torch.no_grad():
        torch.testing.assert_close(outputs(prepared(network), x), network(x.clone()), rtol=1e-5, atol=1e-5)


class DrawsInTraining(Small):
    def mixed(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + (y * (torch.rand(len(x), 1, 1, 1) > 0.1) if self.training else y)


class StochasticDepth(Small):
    def mixed(self, x: Tensor) -> Tensor:
        y: Tensor = torchvision.ops.stochastic_depth(self.conv(x), 0.2, "row", self.training)
        return x + y


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_depends_on_the_mode_is_refused(training: bool) -> None:
    with pytest.raises(UnsupportedModelError, match="computes something else in training mode than in evaluation mode"):
        prepared(NormalizesByNumbers().train(training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            DrawsInTraining(),
            r"draws random numbers in training mode: rand \(test_same_function.py, line \d+\)\. Dropout",
        ),
        (
            StochasticDepth(),
            r"training mode: bernoulli_ \(test_same_function.py, line \d+\)\. Dropout",
        ),
    ],
)
def test_what_is_drawn_at_random_in_training_is_refused(network: nn.Module, message: str, training: bool) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        prepared(network.train(training))


def test_a_comparison_in_training_mode_leaves_statistics_as_they_are() -> None:
    network = resnet8().train()
    before = copy.deepcopy(network.state_dict())
    state = prepared(network).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(state["bn1.running_var"], before["bn1.running_var"])


def test_what_a_hook_does_is_part_of_the_network() -> None:
    network = resnet8()
    network.register_forward_hook(lambda _module, _inputs, logits: logits.exp())
    with pytest.raises(UnsupportedModelError, match=r"operation 'exp' cannot be lowered"):
        prepared(network)


def test_a_network_that_overflows_is_refused() -> None:
    network = Small()
    with torch.no_grad():
        network.fc.weight.fill_(3e38)
        network.fc.bias.fill_(3e38)
        assert network.stem.bias is not None
        network.stem.bias.fill_(1e5)
    with pytest.raises(UnsupportedModelError, match="the network returns NaN or infinity for the example input"):
        prepared(network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_another_type_than_float32_is_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    network = resnet8().to(dtype)
    with pytest.raises(
        UnsupportedModelError, match=rf"tensor 'conv1\.weight' is {name}; .* prepare\(network\.float\(\),"
    ):
        prepared(network)
    network = resnet8()
    network.get_submodule("bn1").register_buffer("running_var", torch.ones(4, dtype=dtype))
    with pytest.raises(UnsupportedModelError, match=rf"tensor 'bn1\.running_var' is {name};"):
        prepared(network)


def test_tensors_without_values_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"tensor 'conv1\.weight' has no values \(device 'meta'\)"):
        prepared(resnet8().to("meta"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "layer2.0.bn1.bias", "fc.bias", "bn1.running_mean"])
def test_nan_and_infinity_are_refused(name: str, value: float) -> None:
    network = resnet8()
    with torch.no_grad():
        network.state_dict()[name].view(-1)[1] = value
    with pytest.raises(UnsupportedModelError, match=f"the network: tensor '{name}' has NaN or infinity in 1 of"):
        prepared(network)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"example_input is uint8 of shape \[1, 3, 8, 8\]; give finite"),
        (torch.zeros(3, 8, 8), r"example_input is float32 of shape \[3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"example_input is float32 of shape \[0, 3, 8, 8\]; .* at least one"),
        (torch.full((1, 3, 8, 8), float("nan")), "give finite float32 images"),
        ([torch.zeros(3, 8, 8)], "example_input is a list; give a tensor of images"),
    ],
)
def test_an_example_that_is_no_batch_of_images_is_refused(example: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(resnet8(), QuantConfig(), example, input_grid=GRID)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    network = Small()
    network.cached = network.fc.weight * 2  # computed, and not a leaf
    with pytest.raises(
        UnsupportedModelError, match=r"the network cannot be copied \(.*\); detach tensors that it comp"
    ):
        prepared(network)


@pytest.mark.parametrize("network", [resnet8(), Small(), nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())])
def test_the_comparison_holds_for_networks_that_are_what_they_seem(network: nn.Module) -> None:
    for training in (True, False):
        prepared(copy.deepcopy(network).train(training))


class Moved(nn.Module):
    """Adds a number and subtracts it again, which leaves four digits of float32."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1e4 - 1e4).mean((2, 3)) * self.weight


class Unmoved(Moved):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.weight


def test_rounding_that_is_multiplied_up_is_no_other_network() -> None:
    example = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    difference = Unmoved(3.0)(example) - Moved(3.0)(example)
    assert float(difference.abs().max()) > 1e-5 * float(Unmoved(3.0)(example).abs().max())
    require_same_function(Unmoved(3.0), Moved(3.0), example)
    with pytest.raises(UnsupportedModelError, match="the captured graph is not the network"):
        require_same_function(Unmoved(3.0), Moved(3.001), example)


class Chaotic(nn.Module):
    """The logistic map, iterated: it doubles the rounding error of a sum until nothing else is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)
        self.turns = nn.ModuleList(nn.Conv2d(4, 4, 1, groups=4) for _ in range(120))
        for turn in self.turns.children():
            assert isinstance(turn, nn.Conv2d)
            assert turn.bias is not None
            nn.init.constant_(turn.weight, 3.99)
            nn.init.zeros_(turn.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid((self.stem(x) + 1000) - 1000)  # captured as one shift, of nothing
        for turn in self.turns:
            x = turn(x * (1 - x))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def test_a_network_that_multiplies_up_every_rounding_is_compared_from_layer_to_layer() -> None:
    network, x = Chaotic().eval(), torch.rand(1, *GRID.shape)
    graph = capture_network(network, x)
    with torch.no_grad():
        precise = copy.deepcopy(nn.ModuleList([network, graph])).double()
        assert float((precise[0](x.double()) - precise[1](x.double())).abs().max()) > 1e-2
    require_same_function(network, graph, x)
    for key, change in (("turns.33", 1e-3), ("fc", 1e-2), ("stem", 1e-3)):
        other = copy.deepcopy(graph)
        with torch.no_grad():
            bias = other.get_submodule(key).bias
            assert isinstance(bias, Tensor)
            bias[1] += change
        with pytest.raises(UnsupportedModelError, match="the captured graph is not the network: on"):
            require_same_function(network, other, x)
