"""Transposed convolutions are rebuilt as convolutions of blocks that compute the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from qil_deploy.network.capture import capture_network

OPTIONS = [
    (kernel, stride, padding, extra, groups)
    for kernel, stride, padding, extra, groups in itertools.product(
        (1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1), (1, 2)
    )
    if padding < kernel and extra < stride
]


@pytest.mark.parametrize("case", range(0, len(OPTIONS), 5))
def test_it_is_the_transposed_convolution(case: int) -> None:
    kernel, stride, padding, extra, groups = OPTIONS[case]
    torch.manual_seed(case)
    up = nn.ConvTranspose2d(4, 6, (kernel, 2), (stride, 2), (padding, 0), (extra, 1), groups, bias=case % 2 == 0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), up, nn.Flatten()).eval()
    x = torch.randn(2, 3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(capture_network(network, x[:1])(x), network(x), rtol=1e-5, atol=1e-5)
