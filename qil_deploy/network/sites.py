"""Sites of quantizers in a captured graph, the groups of sites that share a grid, and the bits their readers want.

A site is a producer (input, convolution or linear with its BatchNorm and ReLU or hard sigmoid, addition, product or
float island with its ReLU, table, pooling, a lone hard sigmoid, BatchNorm or ReLU) and ends where its value is whole.
Between its parts the value may be moved (`behind_moves`).
Readers are found through operations that keep the grid (max pooling, upsampling, flatten, dropout) and through
concatenations; sites that a concatenation joins are one group, because its result can have one grid only. Each
reader wants one of two things:

    interval(bits)    an inner convolution or linear: low-bit codes on a learned interval
    range             the first and last layer, an addition, a product, a table, a pooling, a lone hard sigmoid or
                      BatchNorm, a float island: 8-bit codes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

from qil_deploy.config import EDGE_ACTIVATION_BITS, LayerBits, QuantConfig
from qil_deploy.errors import ConfigError, UnsupportedModelError

from .behind_moves import completion_of, norm_behind
from .float_island import FloatIsland
from .graph import add_module, input_of, kind_of, module_of, row_of, shape_of, users_of
from .layers import ImageAffine, Standalone
from .moves import Reshape
from .operator_row import LAYER_KINDS, MOVING_KINDS, Kind
from .outputs import outputs_of

_BEHIND_LAST: tuple[Kind, ...] = ("pass", "bn", "relu", "hard sigmoid", "table", "pool", "average", "standalone")
"""What may stand between the layer that makes an output and that output."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where a value is complete and may be quantized.

    Attributes:
        producer: input, convolution, linear, addition, product, table, hard sigmoid, pooling or stand-in for a lone
            BatchNorm or ReLU.
        kind: kind of the producer.
        norm, relu: the nodes that complete it, where there are any; a hard sigmoid may replace the ReLU of a layer.
        signed: whether the value can be negative.
    """

    producer: fx.Node
    kind: Kind
    norm: fx.Node | None
    relu: fx.Node | None
    signed: bool

    @property
    def end(self) -> fx.Node:
        """The node whose result is the complete value."""
        return self.relu or self.norm or self.producer


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A node that reads a site, `via` the node directly before it, with the bits it wants (None: 8-bit range)."""

    node: fx.Node
    via: fx.Node
    interval_bits: int | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sites that share one grid (one, unless a concatenation joins several), and all their readers."""

    sites: tuple[Site, ...]
    readers: tuple[Reader, ...]

    @property
    def signed(self) -> bool:
        """Whether any value can be negative."""
        return any(site.signed for site in self.sites)


def isolate(graph_module: fx.GraphModule, config: QuantConfig) -> None:
    """Insert a `Standalone` before every BatchNorm and ReLU that no site absorbs, and before a concatenated input.

    One that carries a BatchNorm absorbs the ReLU after it, too, except with `norms_apart`.

    Raises:
        UnsupportedModelError: a layer that is called twice; with `norms_apart`, a lone BatchNorm or ReLU of no images.
    """
    taken = {part for site in find_sites(graph_module, config) for part in (site.norm, site.relu)}
    for node in list(graph_module.graph.nodes):
        kind = kind_of(graph_module, node)
        if kind in ("bn", "relu") and node not in taken:
            if config.norms_apart and len(shape_of(node)) != 4:
                raise UnsupportedModelError(
                    f"{node.target!r} reads {input_of(node).name!r}, which is no convolution, linear layer or addition "
                    "of its own, and holds no images; only those can absorb it."
                )
            carrier = _stand_in_front(graph_module, node, input_of(node))
            if not config.norms_apart:
                site = _site(graph_module, carrier, "standalone", {}, apart=False)
                taken |= {site.norm, site.relu}
        elif kind == "concat" and not _is_image(graph_module, node):
            for source in node.all_input_nodes:
                if _is_image(graph_module, source):
                    _let_through_a_layer(graph_module, node, source)


def _is_image(graph_module: fx.GraphModule, node: fx.Node, *, normalised: bool = False) -> bool:
    """Whether a node is the image, or only moved parts of it; optionally normalised on the way."""
    kind = kind_of(graph_module, node)
    if kind == "input":
        return True
    goes_on = kind in MOVING_KINDS or (normalised and isinstance(module_of(graph_module, node), ImageAffine))
    return goes_on and all(_is_image(graph_module, source, normalised=normalised) for source in node.all_input_nodes)


def _let_through_a_layer(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node) -> None:
    """Insert a `Standalone` between the image and a node; if the node's input is no map, before it ceased to be one."""
    while len(shape_of(source)) != 4:
        node, source = source, source.all_input_nodes[0]
    _stand_in_front(graph_module, node, source)


def _stand_in_front(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node) -> fx.Node:
    """Insert a `Standalone` between two nodes, and return it; a tensor that is no map becomes a one-row map for it."""
    count, channels, *sizes = shape_of(source)
    name = f"{str(node.target).replace('.', '_')}_input"
    stand_in = source
    if len(sizes) != 2:
        row = (channels, 1, math.prod(sizes))
        stand_in = _insert_before(graph_module, node, f"{name}_row", Reshape(row), stand_in, (count, *row))
    end = stand_in = _insert_before(graph_module, node, name, Standalone(), stand_in, shape_of(stand_in))
    if len(sizes) != 2:
        shape = (channels, *sizes)
        end = _insert_before(graph_module, node, f"{name}_back", Reshape(shape), stand_in, (count, *shape))
    node.replace_input_with(source, end)
    return stand_in


def _insert_before(
    graph_module: fx.GraphModule,
    node: fx.Node,
    name: str,
    module: nn.Module,
    source: fx.Node,
    shape: tuple[int, ...],
) -> fx.Node:
    """Insert a call of a new module, of the result's shape, that reads `source`."""
    with graph_module.graph.inserting_before(node):
        new = graph_module.graph.call_module(add_module(graph_module, name, module), (source,))
    new.meta["shape"] = shape
    return new


def find_sites(graph_module: fx.GraphModule, config: QuantConfig) -> list[Site]:
    """Return all sites in graph order.

    Raises:
        UnsupportedModelError: a layer that is called twice.
    """
    sites: list[Site] = []
    signed: dict[fx.Node, bool] = {}
    targets: set[str] = set()
    taken: set[fx.Node | None] = set()
    for node in graph_module.graph.nodes:
        kind = kind_of(graph_module, node)
        if kind in ("conv", "linear", "bn", "pool"):
            if str(node.target) in targets:
                raise UnsupportedModelError(
                    f"layer {node.target!r} is called more than once; give each call its own layer."
                )
            targets.add(str(node.target))
        if kind is None:
            raise TypeError(f"{node.name!r} is no part of a captured network")
        if kind in MOVING_KINDS:
            signed[node] = any(signed.get(source, True) for source in node.all_input_nodes)
        elif kind not in ("output", "bn", "relu") and node not in taken:
            site = _site(graph_module, node, kind, signed, apart=config.norms_apart)
            sites.append(site)
            taken.add(site.relu)
            signed[site.end] = site.signed
    return sites


def _site(graph_module: fx.GraphModule, node: fx.Node, kind: Kind, signed: dict[fx.Node, bool], *, apart: bool) -> Site:
    completion = _only_user if apart else completion_of
    norm = None
    if kind in ("conv", "linear", "standalone"):
        norm = _only_user(graph_module, node, "bn") if apart else norm_behind(graph_module, node)
    end = norm or node
    relu = completion(graph_module, end, "relu") if kind in ("add", "product", "float", *LAYER_KINDS) else None
    if relu is None and kind in LAYER_KINDS:
        relu = completion(graph_module, end, "hard sigmoid")
    if relu is not None:
        is_signed = getattr(module_of(graph_module, relu), "min_val", 0.0) < 0
    elif kind == "hard sigmoid":
        is_signed = False
    elif kind == "table":
        slopes = not isinstance(module_of(graph_module, node), nn.Sigmoid)
        is_signed = slopes and signed.get(input_of(node), True)
    elif kind in ("add", "product", "pool", "average"):
        # What precedes a lone ReLU is not known yet, and counts as signed.
        is_signed = any(signed.get(source, True) for source in node.all_input_nodes)
    elif isinstance(island := module_of(graph_module, node) if kind == "float" else None, FloatIsland):
        is_signed = island.is_signed([signed.get(source, True) for source in node.all_input_nodes])
    else:
        is_signed = True
    return Site(producer=node, kind=kind, norm=norm, relu=relu, signed=is_signed)


def _only_user(graph_module: fx.GraphModule, node: fx.Node, kind: Kind) -> fx.Node | None:
    users = users_of(node)
    return users[0] if len(users) == 1 and kind_of(graph_module, users[0]) == kind else None


def find_groups(graph_module: fx.GraphModule, config: QuantConfig, edges: set[fx.Node]) -> list[Group]:
    """Return the sites of an isolated graph, grouped by the concatenations that join them, with their readers."""
    groups: list[tuple[list[Site], list[Reader], set[fx.Node]]] = []
    for site in find_sites(graph_module, config):
        readers, joined = _readers_of(graph_module, site, config, edges)
        sites = [site]
        for other in [group for group in groups if group[2] & joined]:
            groups.remove(other)
            sites = other[0] + sites
            readers = list(dict.fromkeys(other[1] + readers))
            joined |= other[2]
        groups.append((sites, readers, joined))
    return [Group(sites=tuple(sites), readers=tuple(readers)) for sites, readers, _ in groups]


def _readers_of(
    graph_module: fx.GraphModule, site: Site, config: QuantConfig, edges: set[fx.Node]
) -> tuple[list[Reader], set[fx.Node]]:
    """Return the readers of the site, and the concatenations on the way to them."""
    readers: list[Reader] = []
    joined: set[fx.Node] = set()
    pending = [(site.end, user) for user in users_of(site.end)]
    while pending:
        via, node = pending.pop(0)
        kind = kind_of(graph_module, node)
        if kind in MOVING_KINDS:
            if kind == "concat":
                if node in joined:
                    continue
                joined.add(node)
            row = row_of(graph_module, node)
            if row is not None and row.wants_range:
                readers.append(Reader(node=node, via=via, interval_bits=None))
            pending.extend((node, user) for user in users_of(node))
            continue
        bits = None
        if kind in ("conv", "linear") and node not in edges:
            bits = config.bits_of(str(node.target), edge=False).activation_bits
        readers.append(Reader(node=node, via=via, interval_bits=bits))
    return readers, joined


def edge_layers(graph_module: fx.GraphModule) -> set[fx.Node]:
    """Return the first and last layers: those that read the input, and the one that makes each output.

    The last ones are found through whatever follows them (ReLU, pooling, flatten); an output that comes from an
    addition or a concatenation has none.
    """
    layers = [node for node in graph_module.graph.nodes if kind_of(graph_module, node) in ("conv", "linear")]
    edges = {layer for layer in layers if _is_image(graph_module, input_of(layer), normalised=True)}
    for last in outputs_of(graph_module.graph):
        while kind_of(graph_module, last) in _BEHIND_LAST:
            last = input_of(last)  # noqa: PLW2901 - back to what makes the output
        edges |= {last} & set(layers)
    return edges


def bits_of_layers(graph_module: fx.GraphModule, config: QuantConfig, edges: set[fx.Node]) -> dict[fx.Node, LayerBits]:
    """Return the bits of every convolution and linear layer.

    Raises:
        ConfigError: an override matches no layer, asks for the impossible, or would change the activation bits
            of a first or last layer, which reads 8-bit codes.
    """
    layers = [node for node in graph_module.graph.nodes if kind_of(graph_module, node) in ("conv", "linear")]
    config.check_patterns([str(layer.target) for layer in layers])
    bits = {layer: config.bits_of(str(layer.target), edge=layer in edges) for layer in layers}
    for layer in edges:
        if bits[layer].activation_bits != EDGE_ACTIVATION_BITS:
            raise ConfigError(
                f"layer {layer.target}: activation_bits={bits[layer].activation_bits}, but the first and last layers "
                f"read {EDGE_ACTIVATION_BITS}-bit codes; override their weight_bits only."
            )
    return bits
