"""Fold the statistics of an image's channels into the layers that read the image.

A network was trained on `x_c = a_c * g_c + b_c`; a prepared one reads `g`, the pixels on a grid that all channels
share (`qil_deploy.preprocessing`). A convolution or linear layer gets the same from it with other weights,

    sum(W * x) + bias = sum((W * a_c) * g) + (bias + sum(W * b_c))

wherever its window lies inside the image. Zeros around an image are zeros of `g` from now on: where the network saw
`x = 0`, it sees `x = b_c` (decision 0041). Max pooling, nearest-neighbour upsampling, padding that repeats the image
and flattening may come in between. For any other reader an `ImageAffine` computes `x`, one rounding like that of any
layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qil_deploy.preprocessing import Preprocessing

from .graph import add_module, input_of, module_of, shape_of, users_of
from .layers import ImageAffine, PaddedConv2d
from .moves import EdgePad

_TRANSPARENT = (nn.MaxPool2d, nn.Upsample, nn.Identity, nn.Flatten, EdgePad)
"""Modules that give the same result before a rising map of each channel as after it."""


def take_in_statistics(graph_module: fx.GraphModule, pixels: Preprocessing) -> None:
    """Make a captured network read the grid of pixels instead of normalised images; its weights change.

    Args:
        graph_module: from `capture_network`.
        pixels: the map from pixels to the network's input.
    """
    if not pixels.is_per_channel:
        return
    gain = torch.tensor(pixels.factor / pixels.scale, dtype=torch.float64)
    shift = torch.tensor((pixels.zero_point - pixels.shift) * pixels.factor, dtype=torch.float64)
    (image,) = (node for node in graph_module.graph.nodes if node.op == "placeholder")
    layers: dict[str, fx.Node] = {}
    pending = [image]
    while pending:
        source = pending.pop()
        others = []
        for user in users_of(source):
            if _is_layer(graph_module, user):
                layers[str(user.target)] = source
            elif _is_transparent(graph_module, user) and _ends_in_layers(graph_module, user):
                pending.append(user)
            else:
                others.append(user)
        if others:
            _insert_affine(graph_module, source, others, ImageAffine(gain, shift))
    graph_module.recompile()
    folded: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for name, source in layers.items():
        values = shape_of(source)[1] // len(gain)  # of one channel: more than one after a flattening
        each_gain, each_shift = gain.repeat_interleave(values), shift.repeat_interleave(values)
        _take_in(graph_module.get_submodule(name), each_gain, each_shift, folded)


def _is_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = module_of(graph_module, node)
    if type(module) is nn.Linear:
        return len(shape_of(input_of(node))) == 2
    return type(module) in (nn.Conv2d, PaddedConv2d)


def _is_transparent(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = module_of(graph_module, node)
    if isinstance(module, nn.Flatten) and len(shape_of(node)) != 2:
        return False
    if isinstance(module, nn.Upsample) and module.mode != "nearest":
        return False
    return type(module) in _TRANSPARENT


def _ends_in_layers(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether all readers of a node, past transparent ones, are layers."""
    return all(
        _is_layer(graph_module, user) or (_is_transparent(graph_module, user) and _ends_in_layers(graph_module, user))
        for user in users_of(node)
    )


def _insert_affine(graph_module: fx.GraphModule, source: fx.Node, readers: list[fx.Node], module: ImageAffine) -> None:
    """Insert a module between a node and some of its readers."""
    name = add_module(graph_module, "normalize", module)
    with graph_module.graph.inserting_after(source):
        affine = graph_module.graph.call_module(name, (source,))
    affine.meta["shape"] = shape_of(source)
    for reader in readers:
        reader.replace_input_with(source, affine)


def _take_in(layer: nn.Module, gain: Tensor, shift: Tensor, folded: dict[int, tuple[nn.Parameter, Tensor]]) -> None:
    """Convert a layer's weights and bias to inputs on the grid of pixels.

    Args:
        layer: convolution or linear.
        gain, shift: float64, of each of its inputs.
        folded: weights already converted, by the identity of the original tensor, each with that tensor: layers that
            shared it still do.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"a {type(layer).__name__} has no weights")
    weight = layer.weight.detach()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    # [C_out, C_in / groups]: each output's own inputs.
    gain, shift = (
        values.to(weight.device).reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
        for values in (gain, shift)
    )
    taps = weight.double().reshape(*gain.shape, -1)
    added = (taps.sum(2) * shift).sum(1).float()
    if id(layer.weight) not in folded:
        values = (taps * gain[..., None]).reshape(weight.shape).float()
        folded[id(layer.weight)] = nn.Parameter(values, layer.weight.requires_grad), layer.weight
    bias = added if layer.bias is None else layer.bias.detach() + added
    trained = layer.weight.requires_grad if layer.bias is None else layer.bias.requires_grad
    layer.weight, layer.bias = folded[id(layer.weight)][0], nn.Parameter(bias, trained)
