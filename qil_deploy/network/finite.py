"""Refuse NaN and infinity in the tensors of a network: quantized, they would become codes like any other."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from qil_deploy.errors import QilDeployError, UnsupportedModelError
from qil_deploy.untrusted_text import excerpt

_DIRECT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_finite(
    named_tensors: Iterable[tuple[str, Tensor]], what: str, *, error: type[QilDeployError] = UnsupportedModelError
) -> None:
    """Check that every value of every floating-point or complex tensor is finite.

    Args:
        named_tensors: (name, tensor), as `named_parameters`, `named_buffers` and `state_dict().items()` give them.
        what: whose tensors they are; the sentence begins with it ("the network", "weights model.pth").
        error: the class to raise.

    Raises:
        error: a value is NaN or infinite. The sentence names the first such tensor and says how many others there are.
    """
    wrong = [(name, tensor) for name, tensor in named_tensors if not is_finite(tensor)]
    if not wrong:
        return
    name, tensor = wrong[0]
    count = int((~_plain(tensor).isfinite()).sum())
    others = f" (so have {len(wrong) - 1} other tensors)" if len(wrong) > 1 else ""
    raise error(
        f"{what}: tensor '{excerpt(name)}' has NaN or infinity in {count:,} of {tensor.numel():,} values{others}; "
        "go back to weights from before training diverged."
    )


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Tell whether no value is NaN or infinite; integers and empty tensors pass.

    Needs no memory of the tensor's size: the smallest and the largest value are NaN if any is.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return all(math.isfinite(float(end)) for end in _plain(tensor).aminmax())


def _plain(tensor: Tensor) -> Tensor:
    """Convert 8-bit floats, which support neither minimum nor `isfinite`, to float32."""
    return tensor if tensor.dtype in _DIRECT or tensor.is_complex() else tensor.float()
