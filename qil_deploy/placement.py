"""Where quantizers belong: the sites of a traced graph and what the readers of each site want.

A site is a producer (input, convolution or linear with its BatchNorm and ReLU, addition with its ReLU,
pooling) and ends where its value is whole. Readers are found through operations that keep the grid (max
pooling, flatten, dropout). Each reader wants one of two things:

    interval(bits)    an inner convolution or linear: low-bit codes on a learned interval
    range             the first and last layer, an addition, a pooling: 8-bit codes
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .config import EDGE_ACTIVATION_BITS, LayerBits, QuantConfig
from .errors import ConfigError, UnsupportedModelError
from .graph import Kind, input_of, kind_of, users_of


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where a value is whole and may be quantized.

    Attributes:
        producer: input, convolution, linear, addition or pooling.
        kind: kind of the producer.
        norm, relu: the nodes that complete it, where there are any.
        signed: whether the value can be negative.
    """

    producer: fx.Node
    kind: Kind
    norm: fx.Node | None
    relu: fx.Node | None
    signed: bool

    @property
    def end(self) -> fx.Node:
        """The node whose result is the whole value."""
        return self.relu or self.norm or self.producer


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A node that reads a site, `via` the node directly before it, and the bits it wants (None: 8-bit range)."""

    node: fx.Node
    via: fx.Node
    interval_bits: int | None


def find_sites(graph_module: fx.GraphModule) -> list[Site]:
    """Return all sites in graph order.

    Raises:
        UnsupportedModelError: a BatchNorm or ReLU that no site takes in, or a layer that is called twice.
    """
    sites: list[Site] = []
    signed: dict[fx.Node, bool] = {}
    taken: set[fx.Node] = set()
    targets: set[str] = set()
    for node in graph_module.graph.nodes:
        kind = kind_of(graph_module, node)
        if kind in ("conv", "linear", "bn", "pool"):
            if str(node.target) in targets:
                raise UnsupportedModelError(
                    f"layer {node.target!r} is called more than once; give each call its own layer."
                )
            targets.add(str(node.target))
        if kind == "pass":
            signed[node] = signed[input_of(node)]
        elif kind in ("bn", "relu"):
            if node not in taken:
                raise UnsupportedModelError(
                    f"{kind} {node.target!r} reads {input_of(node).name!r}, which is no convolution, linear layer "
                    "or addition of its own; only those can take it in."
                )
        elif kind != "output":
            site = _site(graph_module, node, kind, signed)
            sites.append(site)
            signed[site.end] = site.signed
            taken |= {part for part in (site.norm, site.relu) if part is not None}
    return sites


def _site(graph_module: fx.GraphModule, node: fx.Node, kind: Kind, signed: dict[fx.Node, bool]) -> Site:
    end = node
    norm = _only_user(graph_module, end, "bn") if kind == "conv" else None
    end = norm or end
    relu = _only_user(graph_module, end, "relu") if kind in ("conv", "linear", "add") else None
    if relu is not None:
        is_signed = False
    elif kind in ("add", "pool"):
        is_signed = any(signed[source] for source in node.all_input_nodes)
    else:
        is_signed = True
    return Site(producer=node, kind=kind, norm=norm, relu=relu, signed=is_signed)


def _only_user(graph_module: fx.GraphModule, node: fx.Node, kind: Kind) -> fx.Node | None:
    users = users_of(node)
    return users[0] if len(users) == 1 and kind_of(graph_module, users[0]) == kind else None


def readers_of(graph_module: fx.GraphModule, site: Site, config: QuantConfig, edges: set[fx.Node]) -> list[Reader]:
    """Return what reads the site, through operations that keep the grid."""
    readers: list[Reader] = []
    pending = [(site.end, user) for user in users_of(site.end)]
    while pending:
        via, node = pending.pop(0)
        kind = kind_of(graph_module, node)
        if kind == "pass":
            pending.extend((node, user) for user in users_of(node))
            continue
        bits = None
        if kind in ("conv", "linear") and node not in edges:
            bits = config.bits_of(str(node.target), edge=False).activation_bits
        readers.append(Reader(node=node, via=via, interval_bits=bits))
    return readers


def edge_layers(graph_module: fx.GraphModule) -> set[fx.Node]:
    """Return the first and last layers: those that read the input, and those that make the logits.

    Raises:
        UnsupportedModelError: the logits are not the result of a linear layer or convolution.
    """
    edges: set[fx.Node] = set()
    layers = [node for node in graph_module.graph.nodes if kind_of(graph_module, node) in ("conv", "linear")]
    for layer in layers:
        if kind_of(graph_module, _skip_pass(graph_module, input_of(layer))) == "input":
            edges.add(layer)
    last = input_of(graph_module.graph.output_node())
    if last not in layers:
        raise UnsupportedModelError(
            f"the logits come from {last.name!r}; they have to be the result of a linear layer or a convolution."
        )
    return edges | {last}


def _skip_pass(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
    while kind_of(graph_module, node) == "pass":
        node = input_of(node)
    return node


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
