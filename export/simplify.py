"""Leave out work that changes no code: operators that another one repeats, and clipping that a pool makes redundant.

f(x), f(x)                     one f(x), read twice: two quantizers of one tensor that learned the same interval
MaxPool(clip(layer))           clip(MaxPool(layer)): the largest of clipped codes is the clipped largest code, and
                               behind the pool there are fewer of them
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .emitter import QIL_DOMAIN, Emitter, Rule, copy_node, integer, rewrite

_REPEATED = (
    *((QIL_DOMAIN, name) for name in ("Rescale", "Add", "GlobalAveragePool", "Quantize")),
    ("", "MaxPool"),
)
_CLIPPED = ("Conv", "Gemm", "Rescale", "Add")
Key = tuple[object, ...]


def simplify(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Leave out repeated operators and clip behind pools.

    Args:
        model: from `capture`; left unchanged.

    Returns:
        The model, and the names of the nodes whose result has gone: read from another node, or clipped later.
    """
    model, repeated = _share(model)
    model, moved = _clip_behind_pools(model)
    return model, [*repeated, *moved]


def _share(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Let the readers of a node that repeats an earlier one read that."""
    first: dict[Key, ir.Value] = {}
    repeated: list[str] = []

    def rule(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        attributes = sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items())
        key: Key = (node.op_type, *attributes, *map(id, inputs))
        if key in first:
            repeated.append(str(node.name))
        else:
            first[key] = copy_node(emitter, node, inputs)
        return first[key]

    return rewrite(model, dict.fromkeys(_REPEATED, rule)), repeated


def _clip_behind_pools(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Move what clips the codes of a layer behind the MaxPool that alone reads them."""
    pools = {pool: layer for pool in model.graph if (layer := _clipped_source(pool)) is not None}
    layers = set(pools.values())

    def unclipped(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        copy = copy_node(emitter, node, inputs)
        made = copy.producer()
        if node in layers and made is not None:
            for limit in ("low", "high"):
                made.attributes.pop(limit)
        return copy

    def pool(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        result = copy_node(emitter, node, inputs)
        if node not in pools:
            return result
        name = str(result.name)
        result.name = f"{name}_unclipped"
        limits = [emitter.constant(np.uint8(integer(pools[node], limit)), "") for limit in ("low", "high")]
        return emitter.op("Clip", [result, *limits], name, node_name=f"{name}_clip")

    rules: dict[tuple[str, str], Rule] = dict.fromkeys(((QIL_DOMAIN, name) for name in _CLIPPED), unclipped)
    renamed = {layer.outputs[0]: f"{layer.outputs[0].name}_unclipped" for layer in layers}
    return rewrite(model, rules | {("", "MaxPool"): pool}, renamed), [str(layer.name) for layer in pools.values()]


def _clipped_source(node: ir.Node) -> ir.Node | None:
    """Return the layer whose clipped codes a MaxPool alone reads, None where there is none or nothing is clipped."""
    source = node.inputs[0] if node.inputs else None
    layer = None if source is None else source.producer()
    if (node.domain, node.op_type) != ("", "MaxPool") or source is None or layer is None:
        return None
    if (layer.domain != QIL_DOMAIN or layer.op_type not in _CLIPPED) or len(list(source.uses())) != 1:
        return None
    if "high" not in layer.attributes or (integer(layer, "low"), integer(layer, "high")) == (0, 255):
        return None
    return layer
