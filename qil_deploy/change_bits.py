"""Give a prepared model other bits: what keeps its width keeps what it learned, what changes is set anew from data.

A change of one layer's bits can change the graph around it: in `integer` placement a tensor whose readers no longer
want the same width gets 8-bit codes and one interval per width (decision 0008). Intervals are therefore found again by
the layers that read them, not by their names.

Where no BatchNorm follows, the output scale of a changed layer keeps its ratio to the product of both clipping
thresholds, because that is what the quantized weights and activations are counted in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from .calibration import calibrate, estimate_batchnorm, input_unit, interval_before
from .config import QuantConfig
from .layers import QuantConv2d, QuantLayer, QuantLinear
from .preparation import prepare
from .preprocessing import Preprocessing
from .quantizers import ActivationQuantizer, RangeQuantizer, WeightQuantizer


@torch.no_grad()
def change_bits(
    prepared: fx.GraphModule,
    network: nn.Module,
    config: QuantConfig,
    batches: Sequence[Tensor],
    *,
    input_grid: Preprocessing,
    carry_over: bool = False,
) -> fx.GraphModule:
    """Return a prepared model with the weights of `prepared` and the bits of `config`, in evaluation mode.

    Quantizers of another width, and those that had no counterpart, are set as `prepare` and `calibrate` set them; the
    statistics of BatchNorm are estimated anew. `prepared` stays as it is.

    Args:
        prepared: a calibrated or trained model, made from a network like `network`.
        network: the float network; its structure counts, its tensors do not.
        config: the new bits, in the placement of `prepared`.
        batches: inputs, float32 [N, C, H, W] each, to set intervals and statistics from.
        input_grid: scale and zero point that made the input from a uint8 image.
        carry_over: keep intervals whose width changes, too: where training goes on, as in a progressive schedule.

    Raises:
        ConfigError: the network cannot have these bits.
        DataError: no batches.
    """
    changed = prepare(network, config, batches[0][:1], input_grid=input_grid)
    sources = {
        **_activation_sources(changed, prepared, carry_over),
        **_weight_sources(changed, prepared, carry_over),
    }
    _load(changed, prepared, sources)
    fresh = {name for name, source in sources.items() if source is None}
    for name, layer in quantized_layers(changed).items():
        if f"{name}.weight_quantizer" in fresh:
            layer.weight_quantizer.initialize(layer.weight)
    factors = _output_factors(changed, prepared, fresh)
    to_set = {name for name in fresh if not name.endswith(".weight_quantizer")} | factors.keys()
    if to_set:
        calibrate(changed, batches, only=to_set, output_factors=factors)
    else:
        estimate_batchnorm(changed, batches)
    return changed.eval()


def quantized_layers(model: fx.GraphModule) -> dict[str, QuantLayer]:
    """Return the convolutions and linear layers of a prepared model whose weights are trained, in graph order.

    What stands in for an average pooling, a lone BatchNorm or a lone ReLU has weights of 1 and is not among them.
    """
    modules = {str(node.target): module for node, module in _called(model)}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, QuantConv2d | QuantLinear) and module.weight.requires_grad
    }


def bits_read(model: fx.GraphModule) -> dict[str, int]:
    """Return by layer the width of the activations it reads: of its interval, or 8."""
    widths = {}
    for name, interval in _intervals(model).items():
        quantizer = None if interval is None else model.get_submodule(interval)
        widths[name] = quantizer.bits if isinstance(quantizer, ActivationQuantizer) else 8
    return widths


def _called(model: fx.GraphModule) -> list[tuple[fx.Node, nn.Module]]:
    return [(node, model.get_submodule(str(node.target))) for node in model.graph.nodes if node.op == "call_module"]


def _intervals(model: fx.GraphModule) -> dict[str, str | None]:
    """Return by layer the name of the interval quantizer it reads."""
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
    if not isinstance(old, ActivationQuantizer) or old.signed != new.signed:
        return False
    return carry_over or old.bits == new.bits


def _weight_sources(changed: fx.GraphModule, prepared: fx.GraphModule, carry_over: bool) -> dict[str, str | None]:
    known = dict(prepared.named_modules())
    sources: dict[str, str | None] = {}
    for name, module in changed.named_modules():
        if isinstance(module, WeightQuantizer):
            other = known.get(name)
            alike = isinstance(other, WeightQuantizer) and (carry_over or other.bits == module.bits)
            sources[name] = name if alike else None
    return sources


def _load(changed: fx.GraphModule, prepared: fx.GraphModule, sources: dict[str, str | None]) -> None:
    """Give `changed` every tensor of `prepared` that has a place in it."""
    state = prepared.state_dict()
    tensors = {}
    for key in changed.state_dict():
        owner, _, leaf = key.rpartition(".")
        source = sources.get(owner, owner)
        if source is not None:
            tensors[key] = state[f"{source}.{leaf}" if source else leaf]
    changed.load_state_dict(tensors, strict=False)


def _output_factors(changed: fx.GraphModule, prepared: fx.GraphModule, fresh: set[str]) -> dict[str, float]:
    """Return, for layers with a scale and new quantizers, the ratio that the scale had to its thresholds' product."""
    before, intervals = quantized_layers(prepared), _intervals(changed)
    nodes = {str(node.target): node for node, _ in _called(prepared)}
    factors = {}
    for name, layer in before.items():
        if layer.log_output_scale is not None and ({f"{name}.weight_quantizer", str(intervals[name])} & fresh):
            unit = layer.weight_quantizer.thresholds[1] * input_unit(prepared, nodes[name])
            factors[name] = math.exp(float(layer.log_output_scale)) / unit
    return factors
