"""Capturing: the replacements of functional operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qil_deploy.network.capture import capture_network


def test_names_that_would_collide_are_kept_apart() -> None:
    """A functional pooling must not replace a module that has its node's name."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.max_pool2d = nn.MaxPool2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.max_pool2d(nn.functional.relu(self.conv(x)), 2)
            logits: Tensor = self.fc(torch.flatten(self.max_pool2d(x), 1))
            return logits

    traced = capture_network(Network(), torch.zeros(1, 1, 8, 8))

    sizes = [module.kernel_size for module in traced.modules() if isinstance(module, nn.MaxPool2d)]
    assert set(sizes) == {(2, 2), (4, 4)}
    assert traced(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


@pytest.mark.parametrize(
    ("size", "window", "found"),
    [
        ((7, 7), (2, 2, 0), [((2, 2), (2, 2), True)]),  # rounds up
        ((5, 5), (3, 3, 1), [((3, 3), (3, 3), False)]),  # a third window would begin behind the image
        ((7, 5), (3, 3, 1), [((3, 3), (3, 3), False)]),  # rows fit exactly
        ((6, 5), (3, 3, 1), [((3, 1), (3, 1), True), ((1, 3), (1, 3), False)]),
    ],
)
def test_rounding_up_is_left_to_windows_that_begin_inside(
    size: tuple[int, int], window: tuple[int, int, int], found: list[tuple[object, ...]]
) -> None:
    """PyTorch and ONNX Runtime count the other windows alike, but shapes of older operator sets do not."""
    pool = nn.MaxPool2d(*window, ceil_mode=True)
    x = torch.rand(2, 3, *size)
    expected = torch.flatten(pool(x), 1)
    for network in (nn.Sequential(pool, nn.Flatten()), Functional(window)):
        traced = capture_network(network, x)
        pools = [module for module in traced.modules() if isinstance(module, nn.MaxPool2d)]
        assert [(_pair(pool.kernel_size), _pair(pool.stride), pool.ceil_mode) for pool in pools] == found
        assert torch.equal(traced(x), expected)


class Functional(nn.Module):
    def __init__(self, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, *self.window, ceil_mode=True).flatten(1)


def _pair(value: object) -> object:
    return value if isinstance(value, tuple) else (value, value)


def test_a_norm_in_training_may_see_one_value_of_the_example_image() -> None:
    """The example has one image, and BatchNorm cannot learn from a single value per channel; batches have more."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8)
            self.rows, self.norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.norm(self.rows(x.flatten(2))).view(x.shape)
            logits: Tensor = self.fc(torch.flatten(x.relu(), 1))
            return logits

    network = Network().train()
    traced = capture_network(network, torch.zeros(1, 3, 8, 8))

    assert traced(torch.rand(2, 3, 8, 8)).shape == (2, 2)
    assert all(module.training for module in network.modules())
    assert [module.training for module in traced.modules() if isinstance(module, nn.BatchNorm2d)] == [True]
