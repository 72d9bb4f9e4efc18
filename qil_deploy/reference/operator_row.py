"""A row of the table of ONNX operators (`operators`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from qil_deploy.onnx_io import Array, Node

from . import compute, costs
from .arguments import Inputs
from .budget import Cost

INT8: Final = "int8"
FLOAT32: Final = "float32"


class Effect(Enum):
    """Effect of an operator on the elements it reads.

    MOVES      moves them to another place, with constants as filling
    LAYOUT     moves of floats that ONNX Runtime itself puts around its float convolutions
    CHOOSES    each result lies between elements: the largest, a repeated or an interpolated one
    BOUNDS     each result is an element, or a limit that cuts it
    JOINS      MOVES of several inputs
    CASTS      the same numbers in another type
    QUANTIZES  codes of a grid of its own, whatever it read
    COMPUTES   anything else
    """

    MOVES = auto()
    LAYOUT = auto()
    CHOOSES = auto()
    BOUNDS = auto()
    JOINS = auto()
    CASTS = auto()
    QUANTIZES = auto()
    COMPUTES = auto()


@dataclass(frozen=True)
class GridAt:
    """Position of a grid among the inputs of an operator.

    Attributes:
        what: has this grid, such as "weights".
        scale, zero_point: indices of the inputs.
        many: whether there may be several, one for each channel or row.
    """

    what: str
    scale: int
    zero_point: int
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Properties of one ONNX operator.

    Attributes:
        name: its type; no two domains have operators of one name.
        domain: its domain.
        effect: what it does to the elements it reads, if it has a grid for its result, when that is given.
        compute: executes it on integers; refuses where the reference does not (`is_executed`).
        cost: what that takes.
        attributes: those that may have any value that `compute` understands.
        least_inputs: minimum number of inputs.
        exact: whether ONNX Runtime's kernels, reading integers, return the same integers on every machine.
        grids: of what it reads and makes, in this order.
        weights, bias: indices of the inputs; None where it has none.
        arithmetic: what a layer multiplies in, INT8 or FLOAT32; None where it is no layer.
        quantized: whether it is found only in quantized models, grids and arithmetic aside.
        result_type: element type of its result, where that is always the same.
        fused_to: the integer kernel that ONNX Runtime fuses it to between DequantizeLinear and QuantizeLinear.
        sinks: whether ONNX Runtime moves a DequantizeLinear from before it to after it.
    """

    name: str
    domain: str = ""
    effect: Effect = Effect.COMPUTES
    compute: Callable[[Node, Inputs], Array] = compute.not_executed
    cost: Callable[[Node, Inputs], Cost] = costs.nothing
    attributes: frozenset[str] = frozenset()
    least_inputs: int = 0
    exact: bool = False
    grids: tuple[GridAt, ...] = ()
    weights: int | None = None
    bias: int | None = None
    arithmetic: str | None = None
    quantized: bool = False
    result_type: str = ""
    fused_to: str = ""
    sinks: bool = False

    @property
    def is_executed(self) -> bool:
        """Whether the reference executes it."""
        return self.compute is not compute.not_executed

    @property
    def result(self) -> GridAt | None:
        """The grid of its result."""
        return next((grid for grid in self.grids if grid.what == "result"), None)

    @property
    def is_integer_layer(self) -> bool:
        """Whether it multiplies codes by weights that have a grid."""
        return self.weights is not None and any(grid.what == "weights" for grid in self.grids)

    @property
    def is_float_layer(self) -> bool:
        """Whether it multiplies floats by weights."""
        return self.weights is not None and self.arithmetic == FLOAT32

    @property
    def is_quantized(self) -> bool:
        """Whether it occurs only in quantized models."""
        return self.quantized or bool(self.grids) or self.arithmetic == INT8
