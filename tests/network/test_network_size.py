"""The size of a network, without its memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qil_deploy.network.network_size import measure_network
from qil_deploy.training.models.build import MODELS, build_model

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_the_size_is_that_of_the_network(name: str) -> None:
    arguments = {"in_channels": 3, "num_classes": 10}
    size = measure_network(lambda: build_model(name, arguments), SHAPE)
    assert size is not None
    network = build_model(name, arguments).eval()
    assert size.values == sum(tensor.numel() for tensor in network.state_dict().values())
    results: list[int] = [math.prod(SHAPE)]
    for module in network.modules():
        module.register_forward_hook(lambda _module, _inputs, result: results.append(result.numel()))
    with torch.no_grad():
        network(torch.zeros(1, *SHAPE))
    assert size.largest_result == max(results)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_of_the_table_can_be_measured(name: str) -> None:
    size = measure_network(lambda: build_model(name, {"in_channels": 1, "num_classes": 10}), (1, 224, 224))
    assert size is not None
    assert size.largest_result is not None


@pytest.mark.parametrize("width", [10**6, 10**9, 2**40, 2**70])
def test_networks_that_no_machine_holds(width: int) -> None:
    size = measure_network(lambda: build_model("resnet8", {"in_channels": 3, "num_classes": 2, "width": width}), SHAPE)
    assert size is not None
    assert size.values > 10**12


@pytest.mark.parametrize("side", [10**6, 2**40, 2**62])
def test_images_that_no_machine_holds(side: int) -> None:
    size = measure_network(lambda: build_model("resnet8", {"in_channels": 3, "num_classes": 2}), (3, side, side))
    assert size is not None
    assert size.largest_result is not None
    assert size.largest_result > 10**12


class NeedsValues(nn.Module):
    """A network whose forward asks a tensor for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.max())


def refuse() -> nn.Module:
    raise KeyError("nothing to build")


def test_what_cannot_be_measured_is_not_known() -> None:
    assert measure_network(refuse, SHAPE) is None
    size = measure_network(NeedsValues, SHAPE)
    assert size is not None
    assert size.largest_result is None


def test_no_random_number_is_drawn() -> None:
    before, legacy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - whatever it is, it stays
    measure_network(lambda: build_model("resnet8", {"in_channels": 3, "num_classes": 2}), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == str(legacy)  # noqa: NPY002 - as above
