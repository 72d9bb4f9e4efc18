"""Let linear layers read a feature map with its channels last, the layout of ONNX Runtime's convolutions.

ONNX Runtime computes convolutions and pools with the channels last, and moves them to the front for the Flatten before
a linear layer; it does so before the last pool, which then takes ten times as long. Here the linear layer's
weights are arranged for codes in the order [height, width, channel]:

    Flatten(x) -> Gemm(W)        Transpose(x, [0, 2, 3, 1]) -> Flatten -> Gemm(W')

and the Transpose meets that of ONNX Runtime, after the pool, where both vanish.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN, array_of

from .replacement import Replacement, Workspace, inputs_of, producer_of
from .rule import Rule


class ChannelsLast(Rule):
    """Rewrites linear layers that read a flattened map; those that read the same one share its Transpose."""

    removes = False  # other layers may read the Flatten

    def begin(self, workspace: Workspace) -> None:
        """Forget the maps of earlier graphs."""
        super().begin(workspace)
        self._rows: dict[ir.Value, ir.Value] = {}

    def pattern(self, op: Any, x: Any, codes: Any, spread: Any, bias: Any, w_scale: Any) -> Any:  # noqa: ANN401 - onnxscript's builder and variables of patterns
        """A Flatten before a linear layer."""
        rows = op.Flatten(x)
        return op.Gemm(rows, codes, spread, bias, w_scale, _domain=QIL_DOMAIN, _outputs=["result"])

    def check(self, op: MatchContext, result: ir.Value, **_: object) -> MatchResult:
        """Skip maps that are flattened for other readers too, or have no order to change."""
        del op
        match, rows = MatchResult(), inputs_of(producer_of(result))[0]
        shape = _map_of(rows)
        others = sorted({reader.op_type for reader, _ in rows.uses() if reader.domain != QIL_DOMAIN})
        if shape is None:
            return match.fail("what it reads flattened is no feature map", rows)
        if others:
            return match.fail(f"{' and '.join(others)} reads the flattened map, too", rows)
        if rows.is_graph_output():
            return match.fail("the flattened map is an output, too", rows)
        if shape[0] == 1 or shape[1] * shape[2] == 1:
            return match.fail("one channel, or one pixel, has no order", rows)
        return match

    def rewrite(self, op: Replacement, result: ir.Value, **_: object) -> ir.Value:
        """Arrange the weights for channels last."""
        node = producer_of(result)
        rows, codes, *others = inputs_of(node)
        weights = array_of(codes)
        channels, height, width = _map_of(rows) or (1, 1, 1)
        arranged = weights.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(weights.shape)
        stored = op.constant(np.ascontiguousarray(arranged), f"{node.name}_codes_channels_last")
        return op.copy(node, [self._moved(op, rows), stored, *others])

    def _moved(self, op: Replacement, rows: ir.Value) -> ir.Value:
        """Return the map of `rows`, flattened with its channels last; written where it is first read."""
        if rows not in self._rows:
            flatten = producer_of(rows)
            name = str(flatten.name)
            moved = op.op("Transpose", [flatten.inputs[0]], f"{name}_channels_last", attributes={"perm": [0, 2, 3, 1]})
            self._rows[rows] = op.copy(flatten, [moved], f"{rows.name}_rows")
            self.notes.rewritten.append(name)
        return self._rows[rows]


def _map_of(rows: ir.Value) -> tuple[int, int, int] | None:
    """Return [C, H, W] of the input of a Flatten; None if that is no feature map."""
    flatten = rows.producer()
    source = None if flatten is None else flatten.inputs[0]
    if source is None or source.shape is None or source.shape.rank() != 4:
        return None
    channels, height, width = (int(size) for size in source.shape[1:])  # type: ignore[arg-type]  # only the batch is free
    return channels, height, width
