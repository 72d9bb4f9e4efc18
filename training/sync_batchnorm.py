"""BatchNorm over the batch of all processes, on any device.

With `n` values per channel in each of `P` processes and sums over all of them,

    mean = sum(x) / (n P)      var = sum((x - mean)**2) / (n P)      y = (x - mean) / sqrt(var + eps) * weight + bias

both sums pass gradients through the exchange. (torch.nn.SyncBatchNorm does the same on accelerators only.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose statistics, in training mode, are those of all processes together."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [N, C, H, W], float32; every process has the same N, H and W."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _sum(x) / count
        centered = x - mean[:, None, None]
        variance = _sum(centered.square()) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * (count / (count - 1)), rate)
        y = centered * (variance + self.eps).rsqrt()[:, None, None]
        return y * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else y


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - as torch hands it over
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401 - as above
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    """Sum of [N, C, H, W] over all but the channels, over all processes."""
    total: Tensor = _SumOverProcesses.apply(x.sum((0, 2, 3)))
    return total


def synchronize_batchnorm(model: nn.Module) -> None:
    """Replace every trained BatchNorm2d of a model, in place; parameters and statistics stay the same tensors."""
    for name, norm in list(model.named_modules()):
        if type(norm) is nn.BatchNorm2d:
            synchronized = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
            synchronized.weight, synchronized.bias = norm.weight, norm.bias
            for buffer, tensor in norm.named_buffers():
                setattr(synchronized, buffer, tensor)
            model.set_submodule(name, synchronized.train(norm.training))
