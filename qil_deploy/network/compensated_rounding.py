"""Rounding of a model's weights to codes whose errors cancel in each layer's sums.

Layer after layer, in graph order, the weights are replaced by rounded ones that give, on average over data, what the
float layer gives (`moments` has the algebra): from what the layer reads in the quantized network as it is by then, with
rounded activations and with rounded weights in the layers before. So a layer makes up for errors of those before it, as
well as its weights can; directions in which the data hardly vary count little. The target is rounded to
codes whose errors cancel (`compensated_codes`), and the scales and shifts of channels are set to what suits them. A
layer that reads the image reads it exactly, and keeps its own weights as the target; so do all without the float
network.

Afterwards the weights are in the middle of what is rounded to their codes. Intervals and codes of activations stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError

from .bit_widths import bits_read, quantized_layers
from .calibrator import NORMS_STAY, calibration_modes, image_quantizer, input_unit, layer_outputs
from .compensated_codes import best_sizes, compensated_codes, moved_codes
from .graph import shape_of
from .layer_inputs import LayerInputs
from .layers import QuantLayer
from .moments import DAMPING, Moments, Problem, groups_of, inputs_of_weights, results_of_weights

LARGEST_ROW: Final = 16384
"""Weights per output channel beyond which a layer is rounded to nearest: its moments would take over 2 GB."""

_POSITIONS: Final = 64  # of an image that a convolution's inputs are taken from; neighbours tell much the same
_PULL_OF_FEW_BITS: Final = 0.3  # towards a layer's own weights, where it reads activations of less than 8 bits
_BYTES_AT_ONCE: Final = 2**30  # of float layers' results there, collected in one run of the float network


@torch.no_grad()
def compensate_rounding(
    model: fx.GraphModule,
    batches: Sequence[Tensor],
    only: Collection[str] | None = None,
    float_model: nn.Module | None = None,
) -> set[str]:
    """Replace the weights of a calibrated model by rounded ones that reproduce the float network's results on data.

    Their layers get new output scales and shifts, too. Those of other layers, and statistics of BatchNorm, have to be
    set again afterwards; without a float network all of them.

    Args:
        model: prepared, with weight intervals as `prepare` starts them: from 0, without a transformer's exponent.
        batches: float32 [N, C, H, W] each.
        only: names of the layers to round (None: all).
        float_model: the network that `model` was prepared from; None: targets are what layers' own weights give.

    Returns:
        The names of the layers whose weights were replaced.

    Raises:
        UnsupportedModelError: a weight interval that begins elsewhere, or has an exponent.
    """
    layers = _layers(model, only)
    for name, layer in layers.items():
        _require_start(name, layer)
    nodes = [node for node in model.graph.nodes if node.op == "call_module" and str(node.target) in layers]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]  # faster on CPUs by half
    inputs = LayerInputs(model, batches)
    generator = torch.Generator().manual_seed(0)
    with calibration_modes(model):
        for portion in _portions(nodes, sum(map(len, batches))):
            chosen = {str(node.target): _positions(node, len(batches), generator) for node in portion}
            results = {} if float_model is None else _results(model, float_model, batches, portion, chosen)
            for node in portion:
                name, unit = str(node.target), input_unit(model, node)
                moments = _moments(layers[name], inputs.of(node), chosen[name], results.get(name))
                _compensate(layers[name], _problem(model, node, moments, unit), unit)
    return set(layers)


def _layers(model: fx.GraphModule, only: Collection[str] | None) -> dict[str, QuantLayer]:
    """Return the layers to process: those of `only` that share no weights and whose rows are not too long."""
    layers = quantized_layers(model)
    readers = Counter(id(layer.weight) for layer in layers.values())
    return {
        name: layer
        for name, layer in layers.items()
        if (only is None or name in only) and layer.weight[0].numel() <= LARGEST_ROW and readers[id(layer.weight)] == 1
    }


def _require_start(name: str, layer: QuantLayer) -> None:
    quantizer = layer.weight_quantizer
    lower, upper = quantizer.thresholds
    gamma = 1.0 if quantizer.gamma is None else float(quantizer.gamma)
    if abs(lower) > 1e-5 * upper or gamma != 1:
        raise UnsupportedModelError(
            f"layer {name!r}: the interval of its weights is [{lower:.4g}, {upper:.4g}] with exponent {gamma:.4g}; "
            "compensated rounding needs intervals as prepare starts them, from 0 with exponent 1. Use it before "
            "training, or leave rounding='nearest'."
        )


def _portions(nodes: Sequence[fx.Node], images: int) -> Iterator[list[fx.Node]]:
    """Yield groups of layers, in order, whose float results together fit into `_BYTES_AT_ONCE`."""
    portion: list[fx.Node] = []
    size = 0
    for node in nodes:
        needed = 4 * images * shape_of(node)[1] * min(_POSITIONS, _places(node))
        if portion and size + needed > _BYTES_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(node)
        size += needed
    if portion:
        yield portion


def _places(node: fx.Node) -> int:
    """Return the number of results per image and channel of a layer."""
    return torch.Size(shape_of(node)[2:]).numel()


def _positions(node: fx.Node, batches: int, generator: torch.Generator) -> list[Tensor]:
    """Return positions of a convolution's output for each batch, the same in all of its images."""
    return [torch.randperm(_places(node), generator=generator)[:_POSITIONS] for _ in range(batches)]


def _results(
    model: fx.GraphModule,
    float_model: nn.Module,
    batches: Sequence[Tensor],
    nodes: Sequence[fx.Node],
    chosen: Mapping[str, Sequence[Tensor]],
) -> dict[str, list[Tensor]]:
    """Return the results of float layers at positions, by name and batch; not of layers that read the image."""
    layers = quantized_layers(model)
    wanted = {str(node.target) for node in nodes if image_quantizer(model, node) is None}
    results: dict[str, list[Tensor]] = {}
    for index, batch in enumerate(batches):
        for name, outputs in layer_outputs(float_model, batch, wanted).items():
            found = results_of_weights(layers[name], outputs, chosen[name][index])
            results.setdefault(name, []).append(found)
    return results


def _moments(
    layer: QuantLayer, inputs: Iterator[Tensor], chosen: Sequence[Tensor], results: Sequence[Tensor] | None
) -> Moments:
    """Return the moments of a layer's input, and of the float layer's results, at positions of each batch."""
    moments = Moments(layer, with_results=results is not None)
    for index, x in enumerate(inputs):
        moments.add(inputs_of_weights(layer, x, chosen[index]), None if results is None else results[index])
    return moments


def _problem(model: fx.GraphModule, node: fx.Node, moments: Moments, unit: float) -> Problem:
    """Return the target of a layer's weights, in units of the float layer's input."""
    layer = quantized_layers(model)[str(node.target)]
    weights = layer.weight.double().reshape(groups_of(layer), -1, layer.weight[0].numel()) * unit
    norm_learns = layer.bias is None and not model.meta.get(NORMS_STAY, False)
    few_bits = bits_read(model)[str(node.target)] < 8
    return moments.problem(
        weights,
        centred=layer.output_shift is not None or norm_learns,
        pull=_PULL_OF_FEW_BITS if few_bits else DAMPING,
    )


def _compensate(layer: QuantLayer, problem: Problem, unit: float) -> None:
    """Set the rounded weights that solve a problem, with the matching sizes, scales and shifts.

    Args:
        layer: its weights are replaced.
        problem: in units of what the float layer reads.
        unit: what 1 in the layer's input is in those.
    """
    quantizer = layer.weight_quantizer
    largest, (_, upper) = quantizer.largest_code, quantizer.thresholds
    magnitude = torch.full_like(problem.target[:, :, :1], upper * unit)  # represented by the largest code
    if layer.channel_sizes is not None:
        magnitude = best_sizes(problem.target, problem.matrix.diagonal(dim1=1, dim2=2), largest)
        layer.channel_sizes.copy_((magnitude / (upper * unit)).reshape(layer.channel_sizes.shape))
    real = problem.target * (largest / magnitude)
    codes = compensated_codes(real, problem.matrix, largest)
    values = moved_codes(codes, real, problem.matrix, largest) / largest
    sizes = 1.0 if layer.channel_sizes is None else layer.channel_sizes.double()
    layer.weight.copy_(values.reshape(layer.weight.shape) * upper * sizes)
    _set_scale(layer, problem, values, magnitude)


def _set_scale(layer: QuantLayer, problem: Problem, values: Tensor, otherwise: Tensor) -> None:
    """Set output scale and shift to those nearest to the target; if the values are unusable, to `otherwise`."""
    if layer.log_output_scale is None:
        return
    over = (0, 1, 2) if layer.output_shift is None else (2,)
    through = values @ problem.matrix
    along, squares = ((through * other).sum(over, keepdim=True) for other in (problem.target, values))
    usable = (along > 0) & (squares > 0)
    scale = torch.where(usable, along / squares.where(usable, torch.ones_like(squares)), otherwise)
    if layer.output_shift is None:
        layer.log_output_scale.copy_(scale.flatten()[0].log())
        return
    layer.log_output_scale.copy_(scale.flatten().log())
    constant = problem.results / scale[:, :, 0] - (values @ problem.inputs[:, :, None])[:, :, 0]
    layer.output_shift.copy_(constant.flatten())
