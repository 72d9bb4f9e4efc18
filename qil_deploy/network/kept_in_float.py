"""Calls that `QuantConfig` can keep in float, as earlier versions did: gates, operators on rows, scales of channels."""

from __future__ import annotations

import torch
from torch import nn

from .captured_call import Modules
from .layers import ChannelAffine
from .moves import Branches, Reshape
from .operators import OPERATORS

aten = torch.ops.aten


def makes_gate(target: object, _modules: Modules) -> bool:
    """Tell whether an ATen operator is captured as a product, a table or a hard sigmoid (`float_gates`)."""
    return any(target in row.captured for row in OPERATORS if row.kind in ("product", "table", "hard sigmoid"))


def makes_rows(target: object, modules: Modules) -> bool:
    """Tell whether a call is an operator on rows that `float_rows` keeps in float."""
    if target in (aten.constant_pad_nd.default, aten.pad.default):
        return isinstance(modules[0], Reshape) if modules else False
    return any(target in row.captured_rows for row in OPERATORS)


def makes_scale(target: object, modules: Modules) -> bool:
    """Tell whether `float_scales` keeps the modules of a call in float."""
    if target in (aten.flip.default, aten.roll.default, aten.repeat.default, aten.neg.default):
        return True
    if target is aten.mean.dim:
        return isinstance(modules[0], nn.AvgPool2d | Reshape)
    if target is aten._native_batch_norm_legit_no_training.default:
        return isinstance(modules[0], Reshape)
    return any(isinstance(module, ChannelAffine | Branches) for module in modules) and target not in _BRANCHING


_BRANCHING = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default)
"""What is captured as branches, too, and was before."""
