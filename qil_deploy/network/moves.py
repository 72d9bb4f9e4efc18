"""Modules that move values and compute nothing: joins, slices, other shapes, dimensions in another order."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """Tensors behind each other along one dimension, by default the channels.

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
    """Dimensions in another order, the images' first as ever.

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
    """The values of each image in another shape, their order as it was.

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
    """Some of what lies along one dimension: a channel in two, a piece of a split, a part of the image.

    Args:
        dim: the dimension, counted from the front; not that of the images.
        start, stop: the first one that is taken, and the first behind the last.
        step: how far from one to the next; at least 1.
    """

    def __init__(self, dim: int, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.stop, self.step = dim, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        """Return `x[..., start:stop:step, ...]`."""
        return x[(slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)]

    def extra_repr(self) -> str:
        """Where."""
        return f"dim={self.dim}, {self.start}:{self.stop}:{self.step}"
