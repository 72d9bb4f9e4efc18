"""Float islands: operations without an integer form that `allow_float` keeps in float between two 8-bit grids.

An island is one PyTorch module or one operation of the network. It reads values on 8-bit grids, computes in float, and
its result is put on an 8-bit grid of its own. Anything that maps tensors to one tensor, image by image, can be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, fx, nn

Sign = Literal["any", "not negative", "of a product"]


class FloatIsland(nn.Module):
    """One operation of the network, kept in float.

    Args:
        body: the operation alone: one input per tensor that it reads.
        sign: what is known of its results; `of a product`: not negative where no input is.
        input_shapes: of its inputs, without the batch.
    """

    body: fx.GraphModule

    def __init__(self, body: fx.GraphModule, sign: Sign, input_shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.body = body
        self.sign: Sign = sign
        self.input_shapes = tuple(input_shapes)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map float tensors [N, ...] to one [N, ...]."""
        result: Tensor = self.body(*tensors)
        return result

    def is_signed(self, inputs: Sequence[bool]) -> bool:
        """Whether results can be negative for inputs that can be."""
        return self.sign == "any" or (self.sign == "of a product" and any(inputs))

    def extra_repr(self) -> str:
        """Shapes."""
        return f"input_shapes={self.input_shapes}"
