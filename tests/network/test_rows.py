"""Operators on rows [N, C, L] are captured like those on images of one row, with every option, and compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.network.capture import capture_network
from qil_deploy.network.float_island import FloatIsland
from qil_deploy.network.layers import PaddedConv2d
from qil_deploy.network.moves import ConstantPad, PaddedMaxPool2d

LENGTH, CHANNELS = 17, 4
Function = Callable[[Tensor], Tensor]


class OfRows(nn.Module):
    """A function between a convolution of rows and a module that makes its result a map."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv1d(2, CHANNELS, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x.squeeze(2)))[:, :, None]


def require_same(function: Function) -> nn.Module:
    """Compare a network with its captured graph; return the graph."""
    torch.manual_seed(0)
    network, x = OfRows(function).eval(), torch.randn(3, 2, 1, LENGTH)
    captured = capture_network(network, x[:1])
    with torch.no_grad():
        torch.testing.assert_close(captured(x), network(x), rtol=1e-5, atol=1e-5)
    return captured


small = st.integers(1, 5)


@st.composite
def max_pools(draw: st.DrawFn) -> nn.Module:
    kernel = draw(small)
    return nn.MaxPool1d(
        kernel, draw(st.none() | small), draw(st.integers(0, kernel // 2)), draw(st.integers(1, 3)),
        ceil_mode=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def average_pools(draw: st.DrawFn) -> nn.Module:
    kernel = draw(small | st.just(LENGTH))
    padding = draw(st.integers(0, kernel // 2))
    return nn.AvgPool1d(kernel, draw(small), padding, draw(st.booleans()), draw(st.booleans()))


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> nn.Module:
    kernel, stride = draw(small), draw(st.integers(1, 4))
    extra = draw(st.integers(0, stride - 1))
    groups, bias, padding = draw(st.sampled_from((1, 2, 4))), draw(st.booleans()), draw(st.integers(0, kernel - 1))
    return nn.ConvTranspose1d(CHANNELS, 8, kernel, stride, padding, extra, groups, bias)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    kernel, stride = draw(small), draw(small)
    padding = draw(st.integers(0, 4) | st.sampled_from(("same", "valid")))
    dilation, groups = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 4)))
    stride = 1 if padding == "same" else stride
    return nn.Conv1d(CHANNELS, 8, kernel, stride, padding, dilation, groups, draw(st.booleans()))


@st.composite
def paddings(draw: st.DrawFn) -> nn.Module:
    sides = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    return draw(
        st.sampled_from(
            (nn.ConstantPad1d(sides, 0.7), nn.ZeroPad1d(sides), nn.ReflectionPad1d(sides), nn.ReplicationPad1d(sides))
        )
    )


adaptive = st.builds(
    lambda cls, size: cls(size), st.sampled_from((nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)), st.integers(1, LENGTH)
)
upsamplings = st.builds(
    lambda factor, mode: nn.Upsample(scale_factor=factor, mode=mode),
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from(("nearest", "linear")),
)


@settings(max_examples=40)
@given(layer=max_pools() | average_pools() | adaptive | transposed_convolutions() | paddings() | upsamplings)
def test_every_option_computes_what_pytorch_does(layer: nn.Module) -> None:
    require_same(layer)


@settings(max_examples=40)
@given(padding=paddings(), layer=convolutions() | max_pools() | paddings())
def test_padding_in_front_of_anything(padding: nn.Module, layer: nn.Module) -> None:
    require_same(nn.Sequential(padding, layer))


def test_convolutions_and_pools_take_in_the_padding_in_front_of_them() -> None:
    """As in causal convolutions: on the left only."""
    causal = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(CHANNELS, 3, 3, dilation=2))
    (layer,) = (m for m in require_same(causal).modules() if isinstance(m, PaddedConv2d))
    assert layer.pads == (0, 4, 0, 0)
    (pool,) = (
        m
        for m in require_same(lambda x: F.max_pool1d(F.pad(x, (0, 1), value=-torch.inf), 2)).modules()
        if isinstance(m, PaddedMaxPool2d)
    )
    assert pool.pads == (0, 1, 0, 0)
    both = require_same(lambda x: (y := F.pad(x, (2, 0)))[:, :, 2:] + F.max_pool1d(y, 3, 1))
    assert [m.pads for m in both.modules() if isinstance(m, ConstantPad)] == [(2, 0, 0, 0)]


def test_what_is_written_in_place_elsewhere_changes_nothing() -> None:
    """Then PyTorch decomposes the operators of rows, and others are captured (`writes_in_place`)."""
    up, layer = nn.ConvTranspose1d(CHANNELS, CHANNELS, 3, 2, 1, 1), nn.Conv1d(CHANNELS, CHANNELS, 3)

    def function(x: Tensor) -> Tensor:
        before = x * 2
        x.relu_()
        x.view(-1, CHANNELS * LENGTH).mul_(2)
        x = F.max_pool1d(x + before, 3, 2, 1)
        x = F.avg_pool1d(F.pad(up(layer(x)), (1, 0)), 2, ceil_mode=True)
        return F.adaptive_max_pool1d(F.adaptive_avg_pool1d(x, 4), 2)

    require_same(function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            nn.ConvTranspose1d(CHANNELS, 4, 3, dilation=2),
            r"\(ConvTranspose1d\) cannot be lowered: it is a transposed convolution with dilation \[1, 2\]",
        ),
        (lambda x: F.max_pool1d(x.flatten(1), 2), "it pools a tensor of 2 dimensions"),
        (
            lambda x: F.max_pool1d(x, 2, return_indices=True)[1] * 1.0,
            "operation 'max_pool1d_with_indices' .* cannot be lowered",
        ),
        (
            nn.Upsample(scale_factor=2, mode="linear", align_corners=True),
            r"\(Upsample\) cannot be lowered: it upsamples bilinearly with align_corners=True",
        ),
        (
            nn.Upsample(scale_factor=3, mode="linear"),
            r"it upsamples maps of \(1, 17\) to \(1, 51\) bilinearly; integer kernels round alike where each side",
        ),
        (lambda x: F.pad(x, (1, 1), mode="circular"), "it pads in mode 'circular'"),
        (lambda x: F.pad(x, (0, 0, 1, 1))[:, :CHANNELS], "it pads or cuts something else than height and width"),
    ],
)
def test_what_is_refused(function: Function, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        require_same(function)


@pytest.mark.parametrize("layer", [nn.MaxPool1d(2), nn.ConvTranspose1d(CHANNELS, 4, 2), nn.ConstantPad1d(1, 1.0)])
def test_checkpoints_from_before_keep_them_in_float(layer: nn.Module) -> None:
    network, x = OfRows(layer), torch.randn(1, 2, 1, LENGTH)
    for float_rows in (False, True):
        captured = capture_network(network, x, allow_float=True, float_rows=float_rows)
        assert any(isinstance(module, FloatIsland) for module in captured.modules()) == float_rows
