"""Modules that move values: joins, slices, reshapes, permutations, padding, bilinear upsampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.quantizers import InputQuantizer, RangeQuantizer


class Concat(nn.Module):
    """Concatenation of tensors along one dimension, by default the channels.

    Args:
        dim: the dimension, counted from the front; not that of the images.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """Join [N, C_1, ...], [N, C_2, ...], ... to [N, C_1 + C_2 + ..., ...]."""
        return torch.cat(tensors, self.dim)

    def extra_repr(self) -> str:
        """Dimension."""
        return f"dim={self.dim}"


class Permute(nn.Module):
    """Permutation of dimensions; the images' stays first.

    Args:
        dims: for each dimension of the result, which one of the input it is.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Return `x.permute(dims)`."""
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        """Order."""
        return f"dims={self.dims}"


class Reshape(nn.Module):
    """Reshape of each image's values, in unchanged order.

    Args:
        shape: of one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` as [N, *shape]."""
        return x.reshape(len(x), *self.shape)

    def extra_repr(self) -> str:
        """Shape."""
        return f"shape={self.shape}"


class Slice(nn.Module):
    """Slice along one dimension: every second channel, a piece of a split, a part of the image.

    Args:
        dim: the dimension, counted from the front; not that of the images.
        start, stop: the first one that is taken, and the first after the last.
        step: how far from one to the next; at least 1.
    """

    def __init__(self, dim: int, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.stop, self.step = dim, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        """Return `x[..., start:stop:step, ...]`."""
        return x[(slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)]

    def extra_repr(self) -> str:
        """Dimension and range."""
        return f"dim={self.dim}, {self.start}:{self.stop}:{self.step}"


class Flip(nn.Module):
    """Reversal along one dimension.

    Args:
        dim: the dimension, counted from the front; not that of the images.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return `x.flip(dim)`."""
        return x.flip(self.dim)

    def extra_repr(self) -> str:
        """Dimension."""
        return f"dim={self.dim}"


class EdgePad(nn.Module):
    """Padding around an image by its border pixels, or by a reflection at them.

    Args:
        pads: rows and columns on the left, right, top and bottom, as `F.pad` takes them.
        mode: `reflect` or `replicate`.
    """

    def __init__(self, pads: tuple[int, int, int, int], mode: str) -> None:
        super().__init__()
        self.pads, self.mode = pads, mode

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to a larger one."""
        return F.pad(x, self.pads, self.mode)

    def extra_repr(self) -> str:
        """Sizes and mode."""
        return f"pads={self.pads}, mode={self.mode!r}"


class OnGrid(nn.Module):
    """Base class of modules that keep the grid of their input, and must know it.

    Attributes:
        quantizer: of that grid, in a tuple, since another module owns it; empty in a float network.
    """

    quantizer: tuple[RangeQuantizer | InputQuantizer] | tuple[()] = ()


class ConstantPad(OnGrid):
    """Padding around an image by a constant.

    Args:
        pads: rows and columns on the left, right, top and bottom, as `F.pad` takes them.
        value: the constant, which is rounded to the grid.
    """

    def __init__(self, pads: tuple[int, int, int, int], value: float) -> None:
        super().__init__()
        self.pads, self.value = pads, value

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to a larger one."""
        value = self.value
        for quantizer in self.quantizer if value else ():
            with torch.no_grad():
                value = float(quantizer(x.new_full((1,), value)))
        return F.pad(x, self.pads, value=value)

    def extra_repr(self) -> str:
        """Sizes and value."""
        return f"pads={self.pads}, value={self.value}"


class BilinearUpsample(OnGrid):
    """Bilinear upsampling by powers of two between the middles of pixels (`half_pixel`), rounded down to the grid.

    ONNX Runtime does the same with uint8 codes, on every processor: weights are multiples of a power of two, sums
    are exact, and the fraction is cut off. The gradient is that of upsampling without rounding.

    Args:
        factors: of rows and columns.
    """

    def __init__(self, factors: tuple[int, int]) -> None:
        super().__init__()
        self.factors = factors

    def between(self, x: Tensor) -> Tensor:
        """Return values interpolated between the pixels of [N, C, H, W], without rounding."""
        factors = tuple(map(float, self.factors))
        return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to one of `factors` times the rows and columns."""
        result = self.between(x)
        for quantizer in self.quantizer:
            with torch.no_grad():
                step: Tensor = quantizer.step if isinstance(quantizer, RangeQuantizer) else quantizer.scale
                rounded = self.between((x / step).round()).floor() * step
            result = result + (rounded - result).detach()
        return result

    def extra_repr(self) -> str:
        """Factors."""
        return f"factors={self.factors}"


class PaddedMaxPool2d(nn.MaxPool2d):
    """Maximum pooling with separate padding on each side.

    Attributes:
        pads: rows and columns on the left, right, top and bottom; separate from `padding`, which is none.
    """

    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in the base class
        """Map [N, C, H, W] to [N, C, H', W']."""
        result: Tensor = super().forward(F.pad(input, self.pads, value=-math.inf))
        return result

    def extra_repr(self) -> str:
        """Window and pads."""
        return f"{super().extra_repr()}, pads={self.pads}"


class Branches(nn.Module):
    """Paths from one tensor to several, which are joined; each becomes modules of the graph, and this module does not.

    Args:
        paths: for each path, its modules in order.
        join: of their results.

    Given several tensors, each path begins at its own.
    """

    def __init__(self, paths: list[list[nn.Module]], join: nn.Module) -> None:
        super().__init__()
        self.paths, self.join = paths, join

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute what the modules compute."""
        ends = []
        for index, path in enumerate(self.paths):
            end = inputs[index if len(inputs) > 1 else 0]
            for module in path:
                end = module(end)
            ends.append(end)
        result: Tensor = self.join(*ends)
        return result
