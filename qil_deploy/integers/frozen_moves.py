"""Frozen forms of modules that keep a grid and must know it: they work on codes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qil_deploy.network import BilinearUpsample, ConstantPad


class FrozenBilinearUpsample(BilinearUpsample):
    """`floor` of interpolated codes; the weights are multiples of a power of two, so that float32 is exact."""

    def forward(self, x: Tensor) -> Tensor:
        """Map codes [N, C, H, W] to codes of `factors` times the rows and columns."""
        between = self.between(x)
        return between + (between.floor() - between).detach()


class FrozenConstantPad(ConstantPad):
    """One code around an image.

    Args:
        pads: as for `ConstantPad`.
        code: of the constant, kept as a buffer, which checkpoints restore.
    """

    code: Tensor

    def __init__(self, pads: tuple[int, int, int, int], code: int) -> None:
        super().__init__(pads, 0.0)
        self.register_buffer("code", torch.tensor(code, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Map codes [N, C, H, W] to a larger map."""
        return F.pad(x, self.pads, value=float(self.code))
