"""Rounding of weights to codes whose errors cancel in a layer's sums.

Rounded by itself, each weight is off by half a step at most. What counts is how far the sums are off. With `e` [K] the
errors of one output channel's weights in codes, and `x` [K] what the weights meet, that is in the mean over data

    E = e' M e        M = mean(x x')   or, where a shift or a BatchNorm takes a constant out anyway,   M = cov(x)

Weights are rounded one after the other, those that meet the largest inputs first, and the ones that are left take over
what the rounded one got wrong (optimal brain surgery; Hassibi and Stork, 1993), here in the form that needs one
Cholesky factor for all output channels (GPTQ; Frantar et al., ICLR 2023):

    inv(M + damping) = U' U,  U upper triangular        w[j] -= (w[i] - code[i]) * U[i, j] / U[i, i]   for j > i

Where channels have sizes of their own, a channel's largest code stands for the share of its largest weight, among
`_SHARES`, that has the least error with each weight rounded by itself and inputs taken as independent.

Afterwards the weights are in the middle of what is rounded to their codes. Intervals and codes of activations stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qil_deploy.errors import UnsupportedModelError

from .bit_widths import quantized_layers
from .calibrator import NORMS_STAY
from .callers_state import evaluation_mode
from .layers import QuantConv2d, QuantLayer, QuantLinear, pad_image, pair, weight_to_quantize

LARGEST_ROW: Final = 16384
"""Weights per output channel beyond which a layer is rounded to nearest: `M` would take over 2 GB."""

_POSITIONS: Final = 64  # of an image that a convolution's inputs are taken from; neighbours tell much the same
_DAMPING: Final = 0.01  # in units of the mean of M's diagonal
_BLOCK: Final = 128  # columns of weights after whose rounding the rest is brought up to date at once
_BYTES_AT_ONCE: Final = 2 * 2**30  # of the matrices of the layers that one run over the data sees to
_SHARES: Final = torch.linspace(1.0, 0.4, 25, dtype=torch.float64)


@dataclass
class _Moments:
    """Sums over what weights meet: products [G, K, K] and values [G, K], float64, and their number; G groups."""

    products: Tensor
    values: Tensor
    count: int

    def add(self, x: Tensor) -> None:
        """Take in inputs [G, P, K]."""
        x = x.double()
        self.products += x.transpose(1, 2) @ x
        self.values += x.sum(1)
        self.count += x.shape[1]

    def matrix(self, *, centred: bool) -> Tensor:
        """Return `M` (module docstring), damped: [G, K, K], positive definite."""
        matrix = self.products / self.count
        if centred:
            mean = self.values / self.count
            matrix -= mean[:, :, None] * mean[:, None, :]
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        damping = _DAMPING * diagonal.mean(1, keepdim=True)
        diagonal += torch.where(damping > 0, damping, torch.ones_like(damping))  # what a layer never meets is 0
        return matrix


@torch.no_grad()
def compensate_rounding(model: fx.GraphModule, batches: Sequence[Tensor], only: Collection[str] | None = None) -> None:
    """Replace the weights of a calibrated model by those of codes whose errors cancel on data.

    Output scales, shifts and statistics of BatchNorm have to be set again afterwards.

    Args:
        model: prepared, with weight intervals as `prepare` starts them: from 0, without a transformer's exponent.
        batches: float32 [N, C, H, W] each.
        only: names of the layers to see to (None: all).

    Raises:
        UnsupportedModelError: a weight interval that begins elsewhere, or has an exponent.
    """
    layers = {
        name: layer
        for name, layer in quantized_layers(model).items()
        if (only is None or name in only) and layer.weight[0].numel() <= LARGEST_ROW
    }
    for name, layer in layers.items():
        _require_start(name, layer)
    norms_stay = model.meta.get(NORMS_STAY, False)
    for names in _portions(layers):
        moments = _collect({name: layers[name] for name in names}, model, batches)
        for name, found in moments.items():
            layer = layers[name]
            constant_free = layer.output_shift is not None or (layer.bias is None and not norms_stay)
            _compensate(layer, found.matrix(centred=constant_free))


def _require_start(name: str, layer: QuantLayer) -> None:
    quantizer = layer.weight_quantizer
    lower, upper = quantizer.thresholds
    gamma = 1.0 if quantizer.gamma is None else float(quantizer.gamma)
    if abs(lower) > 1e-5 * upper or gamma != 1:
        raise UnsupportedModelError(
            f"layer {name!r}: the interval of its weights is [{lower:.4g}, {upper:.4g}] with exponent {gamma:.4g}; "
            "compensated rounding needs intervals as prepare starts them, from 0 with exponent 1. Use it before "
            "training, or leave rounding='nearest'."
        )


def _portions(layers: dict[str, QuantLayer]) -> Iterator[list[str]]:
    """Yield names of layers whose matrices fit into `_BYTES_AT_ONCE` together."""
    names: list[str] = []
    size = 0
    for name, layer in layers.items():
        needed = 8 * _groups(layer) * layer.weight[0].numel() ** 2
        if names and size + needed > _BYTES_AT_ONCE:
            yield names
            names, size = [], 0
        names.append(name)
        size += needed
    if names:
        yield names


def _groups(layer: QuantLayer) -> int:
    return layer.groups if isinstance(layer, QuantConv2d) else 1


def _collect(layers: dict[str, QuantLayer], model: nn.Module, batches: Sequence[Tensor]) -> dict[str, _Moments]:
    """Return the moments of what the weights of each layer meet when the quantized model reads the batches."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, layer in layers.items():
        groups, row = _groups(layer), layer.weight[0].numel()
        zeros = layer.weight.new_zeros((groups, row, row), dtype=torch.float64)
        found[name] = _Moments(products=zeros, values=zeros[:, 0].clone(), count=0)

    handles = [
        layer.register_forward_pre_hook(
            lambda layer, inputs, moments=found[name]: moments.add(inputs_of_weights(layer, inputs[0], generator))
        )
        for name, layer in layers.items()
    ]
    try:
        with evaluation_mode(model):
            for batch in batches:
                model(batch.clone())
    finally:
        for handle in handles:
            handle.remove()
    return found


def inputs_of_weights(layer: QuantLayer, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return what the weights of an output channel meet, in their order: [G, P, K].

    Of a convolution's input [N, C, H, W] at some positions of its output, the same in each image; of a linear layer's
    in every row.
    """
    if isinstance(layer, QuantLinear):
        return x.reshape(1, -1, x.shape[-1])
    top, left = pair(layer.padding)
    windows = F.pad(pad_image(x, layer), (left, left, top, top))
    for dim, size, stride, dilation in zip(
        (2, 3), layer.kernel_size, pair(layer.stride), pair(layer.dilation), strict=True
    ):
        windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]  # a view
    height, width = windows.shape[2:4]
    chosen = torch.randperm(height * width, generator=generator)[:_POSITIONS].to(x.device)
    seen = windows[:, :, chosen // width, chosen % width]  # [N, C, P, rows, columns]
    seen = seen.unflatten(1, (layer.groups, -1))
    inputs: Tensor = seen.permute(1, 0, 3, 2, 4, 5).reshape(layer.groups, len(x) * len(chosen), -1)
    return inputs


def _compensate(layer: QuantLayer, matrix: Tensor) -> None:
    """Replace a layer's weights by those of compensated codes; sizes of its channels, too, where it has them."""
    quantizer = layer.weight_quantizer
    largest, (_, upper) = quantizer.largest_code, quantizer.thresholds
    if layer.channel_sizes is not None:
        layer.channel_sizes.copy_(_best_sizes(layer, matrix.diagonal(dim1=1, dim2=2)) / upper)
    real = weight_to_quantize(layer).double().reshape(len(matrix), -1, matrix.shape[-1]) * (largest / upper)
    codes = compensated_codes(real, matrix, largest).reshape(layer.weight.shape)
    sizes = 1.0 if layer.channel_sizes is None else layer.channel_sizes.double()
    layer.weight.copy_(codes * (upper / largest) * sizes)


def _best_sizes(layer: QuantLayer, importance: Tensor) -> Tensor:
    """Return the magnitude that each channel's largest code stands for, [C_out, 1, ...].

    Args:
        layer: with weights of any size; a channel of zeros has size 1.
        importance: of the squared error of each weight, [G, K].
    """
    largest = layer.weight_quantizer.largest_code
    weights = layer.weight.double().reshape(len(importance), -1, importance.shape[-1])
    magnitude = weights.abs().amax(2, keepdim=True)
    magnitude = torch.where(magnitude > 0, magnitude, torch.ones_like(magnitude))
    sizes, least = magnitude, torch.full_like(magnitude, torch.inf)
    for share in _SHARES.to(weights.device):
        step = share * magnitude / largest
        error = (weights / step).round().clamp(-largest, largest) * step - weights
        total = (error.square() * importance[:, None]).sum(2, keepdim=True)
        sizes, least = torch.where(total < least, share * magnitude, sizes), torch.minimum(total, least)
    return sizes.reshape(-1, *(1,) * (layer.weight.ndim - 1)).float()


def compensated_codes(real: Tensor, matrix: Tensor, largest: int) -> Tensor:
    """Round codes so that errors cancel (module docstring).

    Args:
        real: codes before rounding, float64 [G, C_out / G, K]; they may lie beyond the largest.
        matrix: `M`, float64 [G, K, K], positive definite.
        largest: codes are whole numbers in [-largest, largest].

    Returns:
        The codes, float64, of the shape of `real`.
    """
    order = matrix.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    factor = _inverse_factor(_reordered(_reordered(matrix, order, 1), order, 2))
    left = _reordered(real, order, 2)
    codes = torch.empty_like(left)
    for start in range(0, left.shape[2], _BLOCK):
        end = min(start + _BLOCK, left.shape[2])
        errors = torch.empty_like(left[:, :, start:end])
        for i in range(start, end):
            codes[:, :, i] = left[:, :, i].round().clamp(-largest, largest)
            error = (left[:, :, i] - codes[:, :, i]) / factor[:, i, i, None]
            errors[:, :, i - start] = error
            left[:, :, i + 1 : end] -= error[:, :, None] * factor[:, None, i, i + 1 : end]
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return _reordered(codes, order.argsort(dim=1), 2)


def _inverse_factor(matrix: Tensor) -> Tensor:
    """Return the upper triangular `U` with `U' U` the inverse of the matrices [G, K, K]."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _reordered(values: Tensor, order: Tensor, dim: int) -> Tensor:
    """Return [G, A, B] with the entries of dimension 1 or 2 in an order [G, A or B] of each group's own."""
    index = order[:, :, None] if dim == 1 else order[:, None, :]
    return values.gather(dim, index.expand(values.shape))
