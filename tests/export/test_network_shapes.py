"""Structures beyond the plain residual network: every code and logit equal, in both formats and all bit widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from .conftest import Exports

SIZE = 10
GRID = Preprocessing(channels=3, height=SIZE, width=SIZE, scale=0.0123, zero_point=77)


class Network(nn.Module):
    """Layers for the cases to call; the forward function is the case."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 6, 1, bias=False), nn.Conv2d(6, 6, 3, padding=1)
        self.left_norm, self.joined_norm = nn.BatchNorm2d(6), nn.BatchNorm2d(12)
        self.joined, self.wide = nn.Conv2d(12, 6, 1), nn.Conv2d(9, 6, 1)
        self.hidden, self.hidden_norm, self.fc = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 7)
        self.three, self.three_too = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.row = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.rows, self.rows_norm = nn.Conv1d(6, 6, 4, 2, 1, dilation=1, groups=2), nn.BatchNorm1d(6)
        self.more_rows, self.more_rows_too = nn.Conv1d(6, 6, 3, padding=1, bias=False), nn.Conv1d(6, 6, 1)
        self.lone_norm = nn.BatchNorm1d(6)
        self.narrow_again = nn.Linear(16, 6)
        self.twice = nn.ConvTranspose2d(6, 6, 2, 2)
        self.odd = nn.ConvTranspose2d(6, 6, 3, 2, 1, output_padding=1, groups=2, bias=False)
        self.overlapping = nn.ConvTranspose2d(6, 6, (4, 5), (2, 3), (1, 2), output_padding=(0, 1), groups=3)
        self.overlapping_norm, self.features, self.features_norm = (
            nn.BatchNorm2d(6),
            nn.Linear(6, 24),
            nn.BatchNorm2d(6),
        )
        self.small, self.other = nn.Linear(6, 7), nn.Linear(6, 7)
        self.gains, self.shifts = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6, 1, 1))
        self.slopes, self.slopes_too, self.steep = nn.PReLU(6), nn.PReLU(6), nn.Parameter(torch.linspace(-1, 1.7, 6))
        with torch.no_grad():
            self.slopes.weight.copy_(torch.linspace(-0.4, 1, 6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - layers that the cases call
        return super().__getattr__(name)


def head(m: Network, x: Tensor) -> Tensor:
    logits: Tensor = m.small(F.adaptive_avg_pool2d(x, 1).flatten(1))
    return logits


def stem(m: Network, x: Tensor) -> Tensor:
    return F.relu(m.norm(m.stem(x)))


def dense(m: Network, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.right(F.relu(m.left_norm(x)))
    return head(m, m.joined(F.relu(m.joined_norm(torch.cat([x, y], 1)))))


def fire(m: Network, x: Tensor) -> Tensor:
    x = stem(m, x)
    joined = torch.cat([F.relu(m.left(x)), F.relu(m.right(x))], 1)
    return head(m, F.relu(m.joined(F.max_pool2d(joined, 3, 2, ceil_mode=True))))


def inception(m: Network, x: Tensor) -> Tensor:
    x = stem(m, x)
    y = F.relu(m.joined(torch.cat([m.left(x), F.max_pool2d(x, 3, 1, 1)], 1)))
    return head(m, y + x)


def image_joined(m: Network, x: Tensor) -> Tensor:
    return head(m, F.relu(m.wide(torch.cat([x, F.relu6(m.stem(x))], 1))))


def bounded(m: Network, x: Tensor) -> Tensor:
    x = F.relu6(m.stem(x))
    return head(m, F.relu(m.right(F.relu6(m.left(x) + x))))


def averages(m: Network, x: Tensor) -> Tensor:
    x = F.avg_pool2d(m.stem(x), 3, 2, 1)
    return head(m, F.avg_pool2d(F.relu(m.right(x)), (1, 5)))


def enlarged(m: Network, x: Tensor) -> Tensor:
    x = F.interpolate(stem(m, F.max_pool2d(x, 2)), scale_factor=2)
    return head(m, F.relu(m.right(x)) + x)


def norm_of_rows(m: Network, x: Tensor) -> Tensor:
    rows = F.max_pool2d(stem(m, x), SIZE).flatten(1)
    logits: Tensor = m.fc(F.relu(m.hidden_norm(m.hidden(rows))))
    return logits


def lone_relus(m: Network, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.left_norm(F.max_pool2d(x, 2))
    return head(m, F.relu(m.right(F.relu(y))) + F.relu(F.max_pool2d(x, 2)))


def pooled_logits(m: Network, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(m.right(stem(m, x))), 1).flatten(1)


def signed_pooled_logits(m: Network, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(m.right(stem(m, x)), 1).flatten(1)


def convolved_logits(m: Network, x: Tensor) -> Tensor:
    return F.max_pool2d(m.right(stem(m, x)), SIZE).flatten(1)


def added_logits(m: Network, x: Tensor) -> Tensor:
    rows = F.max_pool2d(stem(m, x), SIZE).flatten(1)
    logits: Tensor = m.small(rows) + m.other(rows)
    return logits


def turned(m: Network, x: Tensor) -> Tensor:
    """Rows become columns, between layers, before an addition and before the last layer."""
    x = stem(m, x)
    y = m.right(x.transpose(2, 3)) + x.permute(0, 1, 3, 2)
    return head(m, y.permute(0, 1, 3, 2))


def turned_before_layers(m: Network, x: Tensor) -> Tensor:
    """The layers read the transposed tensor directly."""
    x = m.right(F.relu(m.norm(m.stem(x.transpose(2, 3)))).transpose(2, 3))
    x = m.left(x).permute(0, 2, 3, 1)
    logits: Tensor = m.small(F.max_pool2d(x.permute(0, 3, 1, 2), SIZE).permute(0, 2, 3, 1).flatten(1))
    return logits


def padded_on_one_side(m: Network, x: Tensor) -> Tensor:
    """As TensorFlow pads."""
    x = F.relu(m.norm(m.stem(F.pad(x, (0, 1, 0, 1)))))
    return head(m, m.right(F.pad(x, (2, 1, 0, 3))))


def shuffled(m: Network, x: Tensor) -> Tensor:
    """As ShuffleNet: one half is passed on, and channels of both are mixed."""
    x = stem(m, x)
    a, b = x.chunk(2, 1)
    y = torch.cat([a, F.relu(m.three(b))], 1)
    y = y.view(y.shape[0], 2, 3, SIZE, SIZE).transpose(1, 2).reshape(y.shape[0], 6, SIZE, SIZE)
    return head(m, F.relu(m.right(y)) + F.channel_shuffle(x, 3))


def branches_of_parts(m: Network, x: Tensor) -> Tensor:
    """As Res2Net: each part is added to the result of the previous one."""
    a, b, c = torch.split(stem(m, x), [2, 3, 1], 1)
    b = F.relu(m.three(b))
    return head(m, m.joined(torch.cat([b, a, b[:, ::2], b + F.relu(m.three_too(b)), c, c], 1)))


def stacked(m: Network, x: Tensor) -> Tensor:
    """Each channel becomes a row of blocks, and back; single channels are selected and stacked."""
    first, *others = stem(m, x).unbind(1)
    y = torch.stack([others[0], first, others[2].transpose(1, 2)], 1)
    y = F.relu(m.three(y))[..., 1:, 2::2]
    y = F.pixel_unshuffle(F.pixel_shuffle(torch.cat([y, y, y, y], 1), 2)[:, :, :-2], 2)
    return head(m, m.joined(torch.stack([y, y], 1).flatten(1, 2)[:, 3:15]))


def parts_of_the_image(m: Network, x: Tensor) -> Tensor:
    x = torch.stack([x[:, 2], x[:, 1], x[:, 0]], -1).permute(0, 3, 1, 2)
    return head(m, stem(m, x[:, :, 1:, :8]).narrow(3, 2, 5))


def enlarged_between_pixels(m: Network, x: Tensor) -> Tensor:
    """As in a U-Net: bilinear upsampling, into a concatenation, an addition and a convolution."""
    x = stem(m, x)
    y = F.interpolate(F.relu(m.right(F.max_pool2d(x, 2))), scale_factor=2, mode="bilinear")
    z = F.interpolate(F.max_pool2d(m.left(x), (5, 10)), size=(8, 4), mode="bilinear")
    w = F.interpolate(F.adaptive_avg_pool2d(x, 1), size=(8, 4), mode="bilinear")
    return head(m, m.joined(torch.cat([y, x], 1))[..., 2:, 6:] + y[..., :8, :4] + F.relu(w + z))


def enlarged_image(m: Network, x: Tensor) -> Tensor:
    x = F.interpolate(x, scale_factor=(1, 2), mode="bilinear")[..., 3:13]
    return F.interpolate(F.max_pool2d(m.right(stem(m, x)), 4), scale_factor=4, mode="bilinear").flatten(1)


def padded_anywhere(m: Network, x: Tensor) -> Tensor:
    """Before poolings, additions and concatenations, with constants on one side or all, and by existing pixels."""
    x = F.relu6(m.norm(m.stem(F.pad(x, (1, 0, 2, 1), value=0.3))))
    y = F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-math.inf), 3, 2)
    z = F.avg_pool2d(F.pad(m.left(x), (0, 1, 2, 1)), 3, 2)
    y = m.joined(torch.cat([F.pad(y, (1, 0, 0, 1), value=9.0), F.pad(z, (0, 1, 0, 0), value=-0.2)[:, :, :7]], 1))
    y = m.right(F.pad(F.pad(y, (1, 1, 2, 0), mode="reflect"), (0, 2, 1, 1), mode="replicate"))
    return head(m, F.relu(F.pad(y, (-1, -1, 0, -2))) + F.pad(F.relu(y), (0, -2, -2, 0)))


def clipped(m: Network, x: Tensor) -> Tensor:
    x = F.hardtanh(m.norm(m.stem(x)))
    y = m.right(m.left(x).clamp(max=0.4)).clamp(0.1, 0.9) + x.clamp(min=-0.3)
    return head(m, m.joined(torch.cat([y.clamp(-0.5, 0.5), F.max_pool2d(y, 3, 1, 1).clamp(0.05)], 1)))


def convolved_channels(m: Network, x: Tensor) -> Tensor:
    """As in efficient channel attention: a convolution over the row of all channels' means."""
    x = stem(m, x)
    gate = m.row(F.adaptive_avg_pool2d(x, 1).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
    rows = m.rows(F.relu(m.right(x) + gate.expand_as(x)).flatten(2))
    return head(m, rows.view(x.shape[0], 6, 5, 10))


def linear_over_pixels(m: Network, x: Tensor) -> Tensor:
    """As in ConvNeXt and mixers: [N, H, W, C] and [N, H * W, C]."""
    x = stem(m, x)
    y = F.relu(m.hidden(x.permute(0, 2, 3, 1)))
    y = m.narrow_again(y).permute(0, 3, 1, 2) + x
    logits: Tensor = m.small(y.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape[0], 7, SIZE, SIZE).mean((2, 3))
    return logits


def transposed(m: Network, x: Tensor) -> Tensor:
    """As in a U-Net: upsampled by learned weights, joined with earlier features; with BatchNorm and ReLU, too."""
    x = stem(m, x)
    y = m.twice(F.relu(m.right(F.max_pool2d(x, 2))))
    z = F.relu(m.left_norm(m.odd(F.max_pool2d(x, 2))))
    return head(m, F.relu(m.joined(torch.cat([y, x], 1))) + z)


def decoder(m: Network, x: Tensor) -> Tensor:
    """BatchNorm and activations after transposed convolutions, a pixel shuffle, and features reshaped to a map."""
    x = F.relu(m.norm(m.stem(x)))
    y = F.relu6(m.overlapping_norm(m.overlapping(F.max_pool2d(x, 2))))
    z = torch.sub(F.relu(m.left_norm(m.odd(F.max_pool2d(x, 2)))), x, alpha=0.5)
    y = F.relu(m.joined_norm(F.pixel_shuffle(torch.cat([m.right(y), m.left(y)] * 4, 1), 2)[:, :, 1:11, :10])[:, :6])
    w = F.relu(m.features_norm(m.features(F.adaptive_avg_pool2d(x, 1).flatten(1)).view(-1, 6, 2, 2)))
    y = F.hardsigmoid(m.twice(F.max_pool2d(y, 2))) + z
    return head(m, m.joined(torch.cat([y, F.interpolate(w, scale_factor=5)], 1)))


def rows(m: Network, x: Tensor) -> Tensor:
    """BatchNorm and ReLU of a convolution of rows, and lone ones after several of them."""
    x = F.relu(m.norm(m.stem(x))).flatten(2)
    y = F.relu(m.rows_norm(m.rows(x)))
    z = F.hardsigmoid(m.more_rows(y)) + F.relu6(m.more_rows_too(y))
    lone = F.relu(m.lone_norm(torch.cat([y, -z], 1)[:, 3:9]))
    features = m.hidden(F.prelu(lone - z, m.steep).mean(2))
    joined = torch.cat([F.relu(features[:, :9]), F.relu(features)[:, 10:11], z.mean(2)], 1)
    logits: Tensor = m.fc(F.relu(m.hidden_norm(joined)))
    return logits


def uneven_windows(m: Network, x: Tensor) -> Tensor:
    """Windows that do not count padding, that extend beyond the image, and of several sizes."""
    x = stem(m, x)
    y = F.avg_pool2d(m.right(x), 3, 2, 1, ceil_mode=True, count_include_pad=False)
    z = F.avg_pool2d(m.left(x), 3, 2, ceil_mode=True) + F.adaptive_max_pool2d(x, (5, 5))
    y = F.relu(y[:, :, :5, :5] + z)
    return head(m, m.joined(torch.cat([F.adaptive_avg_pool2d(y, (3, 4)), F.adaptive_max_pool2d(y, (3, 4))], 1)))


def scaled(m: Network, x: Tensor) -> Tensor:
    """Layer scale, and a hard swish, a reflection and a normalisation written by hand."""
    x = (stem(m, x) * m.gains[:, None, None] - 0.1) / 0.7
    y = m.right(x) * m.gains.view(1, -1, 1, 1)
    y = y * F.relu6(y + 3) / 6 + 0.25
    z = (1 - m.left(x)).permute(0, 2, 3, 1) * m.gains
    y = F.relu(m.joined(torch.cat([y, -z.permute(0, 3, 1, 2)], 1)) + m.shifts)
    rows = m.row(y.mean((2, 3))[:, None] * 2 + 1).flatten(1)
    logits: Tensor = 3 * m.small(rows) - 1
    return logits


def slopes(m: Network, x: Tensor) -> Tensor:
    """PReLU with a slope for each channel, before a layer, after an addition, and steeper than one."""
    x = m.slopes(m.norm(m.stem(x)))
    y = m.slopes_too(m.right(x) + x)
    return head(m, F.prelu(m.left_norm(m.left(y)), m.steep))


def turned_round(m: Network, x: Tensor) -> Tensor:
    """Flipped, rolled, repeated, and averaged along one direction."""
    x = stem(m, x.flip(3))
    y = m.right(x.roll((2, -3), (2, 3))).flip((1, 2)) + x.roll(-1, 1)
    strips = y.mean(3, keepdim=True).repeat(1, 1, 1, SIZE) + y.mean(2)[:, :, None].repeat(1, 1, SIZE, 1)
    return head(m, m.joined(F.relu(strips).repeat(1, 2, 1, 1)))


CASES = (
    scaled,
    slopes,
    turned_round,
    uneven_windows,
    transposed,
    decoder,
    rows,
    convolved_channels,
    linear_over_pixels,
    enlarged_between_pixels,
    enlarged_image,
    padded_anywhere,
    clipped,
    shuffled,
    branches_of_parts,
    stacked,
    parts_of_the_image,
    turned,
    turned_before_layers,
    padded_on_one_side,
    dense,
    fire,
    inception,
    image_joined,
    bounded,
    averages,
    enlarged,
    norm_of_rows,
    lone_relus,
    pooled_logits,
    signed_pooled_logits,
    convolved_logits,
    added_logits,
)


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_every_code_and_logit_is_equal(
    exports: Exports, function: Callable[[Network, Tensor], Tensor], bits: int, tmp_path: Path
) -> None:
    torch.manual_seed(bits)
    images = np.random.default_rng(bits).integers(0, 256, (9, 3, SIZE, SIZE), dtype=np.uint8)
    case = exports.case(Network(function), QuantConfig(weight_bits=bits, activation_bits=bits), images, GRID, seed=bits)
    for format_ in ("qlinear", "qdq"):
        exports.check_equal(case, tmp_path / f"{format_}.onnx", format=format_)
