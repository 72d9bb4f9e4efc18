"""Operators that stand for dropout while a network is captured.

In evaluation mode dropout returns its input, and `run_decompositions` removes it; but the rebuilt network is trained,
with its dropout. So dropout gets a name that nothing removes.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("qil_deploy::dropout", mutates_args=())
def _dropout(x: Tensor, p: float) -> Tensor:  # noqa: ARG001 - read from the graph
    return x.clone()


@torch.library.custom_op("qil_deploy::feature_dropout", mutates_args=())
def _feature_dropout(x: Tensor, p: float) -> Tensor:  # noqa: ARG001 - as above
    return x.clone()


_dropout.register_fake(lambda x, _: torch.empty_like(x))
_feature_dropout.register_fake(lambda x, _: torch.empty_like(x))

DROPOUT = torch.ops.qil_deploy.dropout.default
FEATURE_DROPOUT = torch.ops.qil_deploy.feature_dropout.default
_MARKS = {
    torch.ops.aten.dropout.default: DROPOUT,
    torch.ops.aten.dropout_.default: DROPOUT,
    torch.ops.aten.feature_dropout.default: FEATURE_DROPOUT,
    torch.ops.aten.feature_dropout_.default: FEATURE_DROPOUT,
}


def mark_dropout(program: torch.export.ExportedProgram) -> None:
    """Replace every dropout of a program that is about to be decomposed by a mark."""
    for node in program.graph.nodes:
        if node.target in _MARKS:
            node.target, node.args = _MARKS[node.target], (node.args[0], float(node.args[1]))
    program.graph_module.recompile()
