"""The clipping threshold of least squared error, the initial end of intervals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Candidates as shares of the largest magnitude; enough values for a stable minimum, few enough to be quick.
_SHARES = 64
_SAMPLE = 65536
# Smaller values count as zero: the reciprocal of an interval that small would leave float32.
_SMALLEST = 2.0**-100


def strided_sample(values: Tensor) -> Tensor:
    """Return a sample of about 65,536 values, flat, or all if there are fewer than twice as many.

    Work on it needs no memory of the tensor's size.
    """
    flat = values.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)]


@torch.no_grad()
def best_threshold(magnitudes: Tensor, largest_code: int) -> float:
    """Return the `u > 0` that minimises `sum((m - u * rint(q * clip(m / u, 0, 1)) / q)**2)`.

    The sum is taken in units of a power of two near the largest magnitude, in which no square leaves float32.

    Args:
        magnitudes: non-negative values, any shape; a strided sample of about 65,536 is used.
        largest_code: `q`.

    Returns:
        The threshold; 1.0 where all magnitudes are zero or below 2**-100 (a dead tensor needs some interval); NaN or
        infinity where the largest magnitude is.
    """
    flat = strided_sample(magnitudes.detach()).to(torch.float32)
    largest = float(flat.max())
    if largest < _SMALLEST:
        return 1.0
    if not math.isfinite(largest):
        return largest
    unit = 2.0 ** (math.frexp(largest)[1] - 1)
    flat, largest = flat / unit, largest / unit
    candidates = largest * torch.arange(1, _SHARES + 1, dtype=torch.float32, device=flat.device) / _SHARES
    errors = torch.stack(
        [
            (flat - (flat / u).clamp_(0, 1).mul_(largest_code).round_().mul_(u / largest_code)).square_().sum()
            for u in candidates
        ]
    )
    return unit * float(candidates[int(errors.argmin())])
