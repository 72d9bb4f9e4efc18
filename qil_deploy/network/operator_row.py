"""A row of the table in `operators`: the properties of an operator that a network may consist of.

What a kind means to the integers:

    conv, linear, average, standalone    a layer: exact sums of codes, one multiplier per channel, one rounding
    add                                  two tensors of codes rescaled, added and rounded
    product                              two tensors of codes multiplied and rounded
    table                                a function of codes: 256 values, each rounded
    hard sigmoid                         completes the layer in front of it; by itself, codes rescaled and rounded
    pool                                 the mean of a whole map: a sum, one ratio, one rounding
    bn, relu                             completes the layer, addition or island in front of it
    concat, pass                         codes move; nothing is rounded, and the grid stays
    pad                                  zeros around an image, taken in by the convolutions that read it
    float                                kept in float between two grids of 8-bit codes (`float_island`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import nn

from .captured_call import Call, Modules
from .onnx_forms import OnnxForm

Kind: TypeAlias = Literal[
    "input",
    "output",
    "conv",
    "linear",
    "bn",
    "relu",
    "add",
    "product",
    "table",
    "hard sigmoid",
    "pool",
    "average",
    "concat",
    "standalone",
    "pass",
    "pad",
    "float",
]
LAYER_KINDS: tuple[Kind, ...] = ("conv", "linear", "average", "standalone")
"""What can be a layer in the frozen model; additions, global poolings and islands only ever make 8-bit codes."""
MOVING_KINDS: tuple[Kind, ...] = ("pass", "concat")
"""What keeps the grid of the values that it moves."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One row of the table.

    Attributes:
        title: its name in messages.
        kind: what it does to values.
        modules: the plain modules that replace it in a captured network.
        captured: ATen operators that it is captured from, each with the function that rebuilds a call; it returns
            plain modules, of this row or of others, and raises `CallError` for what cannot be lowered.
        captured_rows: ATen operators on rows [N, C, L] that it is captured from, too, unless `float_rows` keeps them in
            float, each with what rebuilds the operator of images.
        onnx: for operators that move values: how a module is written in ONNX.
        returns_input: whether the module may return the very tensor that it reads.
        only_trains: whether it does nothing outside training.
        chooses: whether its results are chosen among values or repeated, and not merely moved.
        rearranges: whether it passes on a tensor in another shape or order, which the layers after it read.
        wants_range: whether the grid that it keeps has to be an 8-bit range.
        many_results: whether it makes several tensors, each of which is rebuilt by itself (`Call.result`).
    """

    title: str
    kind: Kind
    modules: tuple[type[nn.Module], ...]
    captured: dict[object, Callable[[Call], Modules]]
    captured_rows: dict[object, Callable[[Call], Modules]] = field(default_factory=dict)
    onnx: Callable[[Any], OnnxForm] | None = None
    returns_input: bool = False
    only_trains: bool = False
    chooses: bool = False
    rearranges: bool = False
    wants_range: bool = False
    many_results: bool = False
