"""Stochastic depth: in training, a residual branch is dropped for some images; in evaluation, it is kept.

The modules of torchvision and timm that do this are replaced by one of ours before a network is captured. In evaluation
mode it calls dropout, which capture sees and rebuilds as a module of this class (`rebuild_moves.dropout`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# Where a class is defined, its name, and what it calls the rate.
_KNOWN = {
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): "p",
    ("timm.layers.drop", "DropPath"): "drop_prob",
}


class DropPath(nn.Module):
    """Zeros for some images, and the others scaled so that the mean is preserved.

    Args:
        p: probability that an image is dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of the kept images, divided by `1 - p`; all of `x` in evaluation mode."""
        if not self.training:
            return F.dropout(x, self.p, training=False)
        return x * F.dropout(x.new_ones(len(x), *[1] * (x.ndim - 1)), self.p, training=True)

    def extra_repr(self) -> str:
        """Rate."""
        return f"p={self.p}"


def replace_drop_paths(network: nn.Module) -> None:
    """Replace every stochastic depth of torchvision or timm by a `DropPath`, in place.

    Those that drop whole batches, or do not enlarge what is kept, stay; training them is refused (`same_function`).
    """
    for owner in list(network.modules()):
        for name, module in list(owner.named_children()):
            rate = _KNOWN.get((type(module).__module__, type(module).__name__))
            if rate is None or getattr(module, "mode", "row") != "row" or not getattr(module, "scale_by_keep", True):
                continue
            replacement = DropPath(float(getattr(module, rate)))
            setattr(owner, name, replacement.train(module.training))
