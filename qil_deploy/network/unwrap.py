"""Find the prepared model in an argument, or name the missing step and the call that does it."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.quantizers import IntervalQuantizer, RangeQuantizer

from .finite import require_finite
from .layers import QuantConv2d, QuantLinear
from .quantized_model import FrozenModel, PreparedModel, QuantizedModel

_SMALLEST_SCALE = 2.0**-100


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel.

    A Sequential with nothing but a prepared or frozen model is another wrapper; around a float network it stays, since
    layers are named after it.
    """
    inner: object = None
    if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
        inner = model.module
    elif type(model).__name__ == "OptimizedModule":  # of torch.compile, whose modules take seconds to import
        inner = getattr(model, "_orig_mod", None)
    elif type(model) is nn.Sequential and len(model) == 1 and isinstance(unwrapped(model[0]), QuantizedModel):
        inner = model[0]
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def prepared_model(
    model: object, needed_by: str, *, may_be_frozen: bool = True, calibrated: bool = True
) -> fx.GraphModule:
    """Return the given prepared or frozen model, unwrapped, after the checks that every use of it needs.

    A frozen model in training mode is folded, so that its integers are those of its present parameters.

    Args:
        model: what the caller handed over.
        needed_by: the function that needs it, for the sentence.
        may_be_frozen: whether a frozen model will do, too.
        calibrated: whether its intervals have to be set.

    Raises:
        UnsupportedModelError: something else; a model that is frozen, or whose intervals were never set, where that
            will not do; a tensor with NaN or infinity in it; or a scale that left float32.
    """
    found = unwrapped(model) if isinstance(model, nn.Module) else model
    if not isinstance(found, QuantizedModel):
        raise UnsupportedModelError(
            f"{needed_by} needs a model from prepare{' or freeze' * may_be_frozen}{_got(found)}"
        )
    if isinstance(found, FrozenModel) and not may_be_frozen:
        raise UnsupportedModelError(f"the model is frozen already; give {needed_by} the prepared model it came from.")
    if calibrated and isinstance(found, PreparedModel) and not found.calibrated:
        raise UnsupportedModelError(
            f"the model's intervals were never set; call calibrate(model, batches), or train it, before {needed_by}."
        )
    if isinstance(found, FrozenModel):
        found.fold()
    require_finite(chain(found.named_parameters(), found.named_buffers()), "the model")
    _require_usable_scales(found)
    return found


def _require_usable_scales(model: nn.Module) -> None:
    """Refuse intervals, steps and output scales that are zero, infinite or near it in float32: training diverged.

    Their parameters are logarithms, and finite.
    """
    for name, module in model.named_modules():
        scales: dict[str, Tensor] = {}
        if isinstance(module, IntervalQuantizer):
            scales["half the width of its interval"] = module.distance
        elif isinstance(module, RangeQuantizer):
            scales["its step"] = module.step
        elif isinstance(module, QuantConv2d | QuantLinear) and module.log_output_scale is not None:
            scales["its output scale"] = module.log_output_scale.exp()
        for what, scale in ((what, end) for what, values in scales.items() for end in _ends(values)):
            if not _SMALLEST_SCALE < scale < 1 / _SMALLEST_SCALE:
                raise UnsupportedModelError(
                    f"the model: {name!r} is out of range: {what} is {scale:.3g}; training has diverged, so go back to "
                    "an earlier state and lower interval_learning_rate or learning_rate."
                )


def _ends(values: Tensor) -> tuple[float, float]:
    low, high = values.detach().aminmax()
    return float(low), float(high)


def float_network(model: object, needed_by: str) -> nn.Module:
    """Return the given float network, unwrapped.

    Raises:
        UnsupportedModelError: something else, or a network that is or holds a prepared or frozen model.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{needed_by} needs a float network, a torch.nn.Module{_got(model)}")
    network = unwrapped(model)
    if isinstance(network, FrozenModel):
        raise UnsupportedModelError(
            f"{needed_by} needs a float network, but this one is frozen already; give it the network that was prepared."
        )
    if any(isinstance(module, QuantizedModel) for module in network.modules()):
        raise UnsupportedModelError(
            f"{needed_by} needs a float network, but this one is prepared already; give it the network that was "
            "prepared, or call change_bits to give a prepared model other bits."
        )
    return network


def _got(found: object) -> str:
    """Describe the object that was given instead, and the remedy."""
    if isinstance(found, dict):
        return (
            ", but got a dict; if it is a state_dict, load it into a model: prepare(network, ...), then "
            "model.load_state_dict(...)."
        )
    if not isinstance(found, nn.Module):
        return f", but got {type(found).__name__!r}."
    inner = [name for name, module in found.named_modules() if isinstance(module, QuantizedModel)]
    if inner:
        return (
            f", but got {type(found).__name__!r}, which does more than pass on to one; give the model inside it, "
            f"{inner[0]!r}."
        )
    if isinstance(found, fx.GraphModule):
        return (
            ", but got another graph, for example of a model that was pickled or traced again; read a checkpoint with "
            "qil_deploy.load_model, or prepare the network again and load the state_dict."
        )
    return (
        f", but got {type(found).__name__!r}; make one: model = prepare(network, config, images[:1], input_grid=...)."
    )
