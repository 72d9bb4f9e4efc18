"""Poolings whose windows differ compute the same as PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from qil_deploy.network.capture import capture_network

AVERAGES = [
    nn.AvgPool2d(kernel, stride, padding, ceil_mode, counts, divisor)
    for kernel, stride, padding, ceil_mode, counts, divisor in itertools.product(
        ((2, 2), (3, 3), (3, 2)), (1, 2, 3), (0, 1), (False, True), (False, True), (None, 5)
    )
]
ADAPTIVE = [cls(size) for cls in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d) for size in (1, 2, 3, 4, (5, 3), (6, 7))]


@pytest.mark.parametrize("pools", [AVERAGES[start::12] for start in range(12)] + [ADAPTIVE])
def test_they_compute_what_pytorch_does(pools: list[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 10)
    for pool in pools:
        network = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Flatten()).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                capture_network(network, x[:1])(x), network(x), rtol=1e-5, atol=1e-6, msg=str(pool)
            )
