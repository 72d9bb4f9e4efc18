"""Freeze a prepared model: every rounding of the exported graph happens in its forward pass.

`freeze_graph` replaces the modules. This file has the public functions, and checks the model before and its multipliers
after: steps and multipliers from which float32 could overflow or leave its normal numbers are refused.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.network import FrozenModel, PreparedModel, keeps_float, nothing_left_behind, prepared_model

from .freeze_graph import Freezer
from .frozen_layer import FrozenLayer

# With steps from 2**-100 to 2**100 (`unwrap.prepared_model`), whatever is made for the file is a normal float32 number.
_LARGEST_MULTIPLIER = 2.0**100


def freeze(model: nn.Module, *, share_parameters: bool = False) -> FrozenModel:
    """Return the frozen copy of a prepared model, in evaluation mode; `model` stays as it is.

    Args:
        model: from `prepare` with `integer` placement, calibrated or trained.
        share_parameters: whether both models share the parameters, without a copy; for a frozen model that is not
            trained.

    Raises:
        UnsupportedModelError: `paper` placement, whose float layers and residual stream cannot be frozen; a model that
            is not from `prepare`, is frozen already or was never calibrated; NaN or infinity in a tensor; a step or
            multiplier that float32 cannot calculate with.
    """
    prepared = prepared_model(model, "freeze", may_be_frozen=False)
    _require_integer_placement(prepared)
    with nothing_left_behind():
        shared = {id(parameter): parameter for parameter in prepared.parameters()} if share_parameters else {}
        copied = copy.deepcopy(prepared, shared)
        device = next((parameter.device for parameter in copied.parameters()), torch.device("cpu"))
        frozen = _frozen(copied.cpu())  # on the CPU: the integers must not depend on the device
        frozen.to(device)
    _require_usable_multipliers(frozen)
    return frozen


def freeze_structure(prepared: PreparedModel) -> FrozenModel:
    """Freeze a prepared model in place; its tensors are loaded later, and therefore not examined."""
    _require_integer_placement(prepared)
    with nothing_left_behind():
        return _frozen(prepared)


def _require_integer_placement(model: fx.GraphModule) -> None:
    if keeps_float(model):
        raise UnsupportedModelError(
            "a model in 'paper' placement keeps float layers and cannot be frozen; prepare it with placement='integer'."
        )


def _frozen(prepared: fx.GraphModule) -> FrozenModel:
    """Freeze a model, reusing its modules."""
    prepared.eval()
    Freezer(prepared).run()
    prepared.graph.lint()
    frozen = FrozenModel(prepared, prepared.graph)
    frozen.meta |= prepared.meta
    frozen.eval()
    return frozen


def _require_usable_multipliers(frozen: fx.GraphModule) -> None:
    """Require the multipliers of accumulators, and the numbers they are made of, to be usable in float32."""
    for name, layer in frozen.named_modules():
        if isinstance(layer, FrozenLayer):
            scale = layer.x.scale * layer.w_scale
            largest = float((scale if layer.y is None else scale / layer.y_step).max())
            smallest = float(torch.minimum(scale, layer.w_scale).min())
            if not (largest <= _LARGEST_MULTIPLIER and smallest >= torch.finfo(torch.float32).tiny):
                found = f"{largest:.3g}" if smallest >= torch.finfo(torch.float32).tiny else f"{smallest:.3g}"
                raise UnsupportedModelError(
                    f"layer {name!r} multiplies its sums by {found}, which float32 cannot work with. Look for a "
                    "BatchNorm or output scale that has grown beyond bounds or vanished, and train with a lower rate."
                )
