"""Put quantizers into a float network, where `placement` says they belong.

`paper` placement: one interval quantizer in front of every inner convolution and linear layer; the first and
last layer, residual stream and pooled features stay float.

`integer` placement: every site carries one grid. A convolution or linear site whose readers all want the same
interval carries that interval; any other site carries 8-bit codes, and low-bit intervals are placed behind
them, one per bit width and tensor (decision 0008).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from .calibration import calibrate_on_first_batch
from .config import LayerBits, QuantConfig
from .errors import UnsupportedModelError
from .graph import free_name, module_of, trace, users_of
from .layers import QuantLayer, quantize_layer
from .placement import Reader, Site, bits_of_layers, edge_layers, find_sites, readers_of
from .preprocessing import Preprocessing
from .quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer


def prepare(
    model: nn.Module, config: QuantConfig, example_input: Tensor, *, input_grid: Preprocessing
) -> fx.GraphModule:
    """Return a copy of `model` with quantized layers and quantizers in it, ready to be trained.

    Weight intervals are set from the weights; activation intervals by `calibrate`, or by the first batch that
    passes in training mode.

    Args:
        model: float network that `torch.fx` can trace, one image tensor in, logits out.
        config: bits and placement.
        example_input: float32 [N, C, H, W]; only its shape matters.
        input_grid: scale and zero point that made the input from a uint8 image.

    Raises:
        UnsupportedModelError: an operation that cannot be lowered, or a structure that cannot be quantized.
        ConfigError: bits out of range, or an override that matches no layer.
    """
    graph_module = trace(copy.deepcopy(model), example_input)
    edges = edge_layers(graph_module)
    bits = bits_of_layers(graph_module, config, edges)
    sites = find_sites(graph_module)
    readers = {site: readers_of(graph_module, site, config, edges) for site in sites}
    kept_float = edges if config.placement == "paper" else set()
    for site in sites:
        if site.kind in ("conv", "linear") and site.producer not in kept_float:
            _quantize_layer(graph_module, site, bits[site.producer], config)
    for site in sites:
        if config.placement == "paper":
            for reader in readers[site]:
                if reader.interval_bits is not None:
                    _insert_interval(graph_module, reader.via, [reader])
        else:
            _insert_grid(graph_module, site, readers[site], input_grid)
    graph_module.register_buffer("calibrated", torch.tensor(False))
    graph_module.register_forward_pre_hook(calibrate_on_first_batch)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _quantize_layer(graph_module: fx.GraphModule, site: Site, bits: LayerBits, config: QuantConfig) -> None:
    layer = module_of(graph_module, site.producer)
    name = str(site.producer.target)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"{name} is a {type(layer).__name__}")
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        raise UnsupportedModelError(
            f"layer {name!r} pads with {layer.padding!r} in mode {layer.padding_mode!r}; only a fixed number of zeros "
            "can be lowered."
        )
    quantized: QuantLayer = quantize_layer(
        layer, bits, normalized=site.norm is not None, train_gamma=config.train_gamma
    )
    graph_module.add_submodule(name, quantized)


def _insert_grid(graph_module: fx.GraphModule, site: Site, readers: list[Reader], input_grid: Preprocessing) -> None:
    """Put onto one site what its readers want in `integer` placement."""
    if any(reader.node.op == "output" for reader in readers):
        return
    widths = {reader.interval_bits for reader in readers}
    if site.kind == "input":
        name, grid = "input_quantizer", InputQuantizer(input_grid.scale, input_grid.zero_point)
        via = _insert_after(graph_module, site.end, name, grid)
    elif site.kind in ("conv", "linear") and len(widths) == 1 and None not in widths:
        _insert_interval(graph_module, site.end, readers, all_users=True)
        return
    else:
        name = f"ranges.{site.end.name}"
        via = _insert_after(graph_module, site.end, name, RangeQuantizer(signed=site.signed))
    groups: dict[tuple[fx.Node, int], list[Reader]] = {}
    for reader in readers:
        if reader.interval_bits is not None:
            source = via if reader.via is site.end else reader.via
            groups.setdefault((source, reader.interval_bits), []).append(reader)
    for (source, _), group in groups.items():
        _insert_interval(graph_module, source, group)


def _insert_interval(
    graph_module: fx.GraphModule, source: fx.Node, readers: list[Reader], *, all_users: bool = False
) -> None:
    """Put one interval quantizer between `source` and the given readers (or all users of `source`)."""
    bits = readers[0].interval_bits
    if bits is None:
        raise TypeError(f"{readers[0].node.name} reads 8-bit codes")
    # Module names cannot hold dots; the quantizer is named after the first layer that reads it.
    name = f"intervals.{str(readers[0].node.target).replace('.', '_')}"
    users = None if all_users else [reader.node for reader in readers]
    _insert_after(graph_module, source, name, ActivationQuantizer(bits), users)


def _insert_after(
    graph_module: fx.GraphModule,
    source: fx.Node,
    name: str,
    module: nn.Module,
    users: list[fx.Node] | None = None,
) -> fx.Node:
    """Insert a call of `module` behind `source`, read by `users` (by all its users if None)."""
    chosen = users_of(source) if users is None else users
    name = free_name(graph_module, name)
    graph_module.add_submodule(name, module)
    with graph_module.graph.inserting_after(source):
        new = graph_module.graph.call_module(name, (source,))
    for user in chosen:
        user.replace_input_with(source, new)
    return new
