"""Change the bits of a prepared model: unchanged widths keep what was learned, changed ones are set from data.

A change of one layer's bits can change the graph around it: in `integer` placement a tensor whose readers no longer
want the same width gets 8-bit codes and one interval per width (decision 0008). Intervals are therefore found again by
the layers that read them, not by their names.

Where no BatchNorm follows, the output scale of a changed layer keeps its ratio to the product of both clipping
thresholds, because that is what the quantized weights and activations are counted in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError, UnsupportedModelError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer, WeightQuantizer

from .batches import checked_batches
from .calibrator import NORMS_STAY, estimate_statistics, input_unit, interval_before, set_intervals
from .layers import AveragingConv2d, QuantConv2d, QuantLayer, QuantLinear, weight_to_quantize
from .preparation import prepare
from .quantized_model import CONFIG, PreparedModel, keeps_float, refuse_single_values
from .unwrap import prepared_model


@torch.no_grad()
def change_bits(
    prepared: nn.Module,
    network: nn.Module,
    config: QuantConfig,
    batches: Iterable[object],
    *,
    input_grid: Preprocessing,
    carry_over: bool = False,
) -> PreparedModel:
    """Return a prepared model with the weights of `prepared` and the bits of `config`, in evaluation mode.

    Quantizers of another width, and those that had no counterpart, are set as `prepare` and `calibrate` set them; the
    statistics of BatchNorm are estimated anew, where it does not keep those of the float network. `prepared` stays as
    it is, and so do `network` and the batches.

    Args:
        prepared: a calibrated or trained model, made from a network like `network`.
        network: the float network; its structure counts, its tensors do not.
        config: the new bits, in the placement and with the output scales of `prepared`.
        batches: to set intervals and statistics from, as for `calibrate`.
        input_grid: scale and zero point that made the input from a uint8 image, as `prepared` has them.
        carry_over: keep intervals whose width changes, too: where training continues, as in a progressive schedule.

    Raises:
        ConfigError: the network cannot have these bits, or `config` or `input_grid` is for another kind of model than
            `prepared`.
        DataError: batches that do not fit, as for `calibrate`.
        UnsupportedModelError: `prepared` is not from `prepare`, is frozen or was never calibrated; or `network` is
            another network.
    """
    before = prepared_model(prepared, "change_bits", may_be_frozen=False)
    checked = checked_batches(batches, "change_bits", before)
    changed = prepare(network, config, checked[0][:1], input_grid=input_grid)
    _require_same_kind(before, changed)
    sources = {
        **_activation_sources(changed, before, carry_over),
        **_weight_sources(changed, before, carry_over),
    }
    _load(changed, before, sources)
    fresh = {name for name, source in sources.items() if source is None}
    for name, layer in quantized_layers(changed).items():
        if f"{name}.weight_quantizer" in fresh:
            layer.weight_quantizer.initialize(weight_to_quantize(layer))
    factors = _output_factors(changed, before, fresh)
    to_set = {name for name in fresh if not name.endswith(".weight_quantizer")} | factors.keys()
    norms_stay = changed.meta[NORMS_STAY]
    if not norms_stay:
        for batch in checked:
            refuse_single_values(changed, "change_bits", batch, norms_learn=True)
    if to_set:
        fitted = network if config.output_scales == "channels" else None
        set_intervals(changed, checked, only=to_set, output_factors=factors, float_model=fitted)
    elif not norms_stay:
        estimate_statistics(changed, checked)
    changed.eval()
    return changed


def _require_same_kind(before: fx.GraphModule, changed: fx.GraphModule) -> None:
    """Refuse a config or grid that would make another kind of model.

    Raises:
        ConfigError: naming what differs.
    """
    paper = [keeps_float(model) for model in (before, changed)]
    if paper[0] != paper[1]:
        names = ["paper" if each else "integer" for each in paper]
        raise ConfigError(
            f"change_bits: config has placement={names[1]!r}, but the model was prepared in {names[0]!r}."
        )
    names = [model.meta[CONFIG].output_scales for model in (before, changed)]
    if names[0] != names[1]:
        raise ConfigError(
            f"change_bits: config has output_scales={names[1]!r}, but the model was prepared with {names[0]!r}."
        )
    quantizers = [
        module for model in (before, changed) for module in model.modules() if isinstance(module, InputQuantizer)
    ]
    if quantizers and not quantizers[0].maps_like(quantizers[1]):
        described = [quantizer.describe() for quantizer in quantizers]
        raise ConfigError(
            f"change_bits: input_grid has {described[1]}, but the model was prepared with {described[0]}."
        )


def quantized_layers(model: fx.GraphModule) -> dict[str, QuantLayer]:
    """Return the convolutions and linear layers of a prepared model that the float network has too, in graph order.

    What stands in for an average pooling, a lone BatchNorm or a lone ReLU has weights of 1 and is not among them.
    """
    modules = {str(node.target): module for node, module in _called(model)}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, QuantConv2d | QuantLinear) and not isinstance(module, AveragingConv2d)
    }


def bits_read(model: fx.GraphModule) -> dict[str, int]:
    """Return, by layer, the width of the activations it reads: its interval's, or 8."""
    widths = {}
    for name, interval in _intervals(model).items():
        quantizer = None if interval is None else model.get_submodule(interval)
        widths[name] = quantizer.bits if isinstance(quantizer, ActivationQuantizer) else 8
    return widths


def _called(model: fx.GraphModule) -> list[tuple[fx.Node, nn.Module]]:
    return [(node, model.get_submodule(str(node.target))) for node in model.graph.nodes if node.op == "call_module"]


def _intervals(model: fx.GraphModule) -> dict[str, str | None]:
    """Return, by layer, the name of the interval quantizer it reads."""
    layers = quantized_layers(model)
    nodes = {str(node.target): node for node, _ in _called(model)}
    return {name: interval_before(model, nodes[name]) for name in layers}


def _activation_sources(changed: fx.GraphModule, prepared: fx.GraphModule, carry_over: bool) -> dict[str, str | None]:
    """Return, for every interval and range of `changed`, its counterpart in `prepared` by name, or None."""
    before, after = _intervals(prepared), _intervals(changed)
    known = dict(prepared.named_modules())
    sources: dict[str, str | None] = {}
    for name, module in changed.named_modules():
        if isinstance(module, RangeQuantizer):
            other = known.get(name)
            sources[name] = name if isinstance(other, RangeQuantizer) and other.signed == module.signed else None
        elif isinstance(module, ActivationQuantizer):
            candidates = [before[layer] for layer, interval in after.items() if interval == name]
            sources[name] = next(
                (old for old in candidates if old is not None and _same(known[old], module, carry_over)), None
            )
    return sources


def _same(old: nn.Module, new: ActivationQuantizer, carry_over: bool) -> bool:
    if not isinstance(old, type(new)) or old.signed != new.signed:  # by another method, parameters mean something else
        return False
    return carry_over or old.bits == new.bits


def _weight_sources(changed: fx.GraphModule, prepared: fx.GraphModule, carry_over: bool) -> dict[str, str | None]:
    known = dict(prepared.named_modules())
    sources: dict[str, str | None] = {}
    for name, module in changed.named_modules():
        if isinstance(module, WeightQuantizer):
            other = known.get(name)
            alike = isinstance(other, type(module)) and (carry_over or other.bits == module.bits)
            sources[name] = name if alike else None
    return sources


def _load(changed: fx.GraphModule, prepared: fx.GraphModule, sources: dict[str, str | None]) -> None:
    """Load every tensor of `prepared` that `changed` has too.

    Raises:
        UnsupportedModelError: the network of one is not that of the other.
    """
    state = prepared.state_dict()
    tensors = {}
    for key, new in changed.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        source = sources.get(owner, owner)
        if source is None:
            continue
        name = f"{source}.{leaf}" if source else leaf
        if leaf == "gamma_raw" and name not in state:  # the exponent is trained from now on, and was 1
            continue
        if name not in state or state[name].shape != new.shape:
            found = list(state[name].shape) if name in state else "none"
            raise UnsupportedModelError(
                f"change_bits: the network is not the one that the model was prepared from: {name!r} has shape {found} "
                f"in the model and {list(new.shape)} in the network."
            )
        tensors[key] = state[name]
    changed.load_state_dict(tensors, strict=False)


def _output_factors(changed: fx.GraphModule, prepared: fx.GraphModule, fresh: set[str]) -> dict[str, float]:
    """Return, for layers with a scale and new quantizers, the ratio of that scale to the product of their thresholds.

    It is 1 for a layer whose channels have scales of their own: these are fitted to the float network's anew.
    """
    before, intervals = quantized_layers(prepared), _intervals(changed)
    nodes = {str(node.target): node for node, _ in _called(prepared)}
    factors = {}
    for name, layer in before.items():
        if layer.log_output_scale is not None and ({f"{name}.weight_quantizer", str(intervals[name])} & fresh):
            unit = layer.weight_quantizer.thresholds[1] * input_unit(prepared, nodes[name])
            alone = layer.output_shift is None
            factors[name] = math.exp(float(layer.log_output_scale)) / unit if alone else 1.0
    return factors
