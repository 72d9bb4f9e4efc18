"""Shares of the values that the intervals of a prepared model cut, and samples for histograms.

    pruned      values below the lower threshold (of weights: magnitudes)
    clipped     values above the upper threshold; of an 8-bit range: values outside it
    zero        values whose code is that of 0, pruned ones among them

Shares count every value; samples are drawn with a seed, and bounded, whatever the size of the network and its images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qil_deploy.network import (
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    checked_batches,
    evaluation_mode,
    module_of,
    prepared_model,
    weight_to_quantize,
)
from qil_deploy.quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer

SAMPLES = 100_000
_BATCH_SIZE = 32

ActivationGrid = ActivationQuantizer | RangeQuantizer | InputQuantizer


@dataclass(frozen=True, kw_only=True)
class QuantizedValues:
    """Input values of one quantizer.

    Attributes:
        name: of the layer whose weights they are, or of the quantizer of activations.
        bits: of their codes.
        lower, upper: thresholds, or the ends of an 8-bit range.
        gamma: exponent of the weight transformer; 1 for activations.
        pruned, clipped, zero: shares of all values, in [0, 1].
        sample: float32 [at most `SAMPLES`, or a few more].
        mirrored: whether the interval holds for magnitudes.
    """

    name: str
    bits: int
    lower: float
    upper: float
    gamma: float
    pruned: float
    clipped: float
    zero: float
    sample: NDArray[np.float32]
    mirrored: bool


@torch.no_grad()
def weight_values(model: fx.GraphModule) -> list[QuantizedValues]:
    """Return the inputs of each layer's weight quantizer, in the order of the layers."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantConv2d | QuantLinear)]
    return [_weight_values(name, layer) for name, layer in layers]


def _weight_values(name: str, layer: QuantLayer) -> QuantizedValues:
    quantizer = layer.weight_quantizer
    lower, upper = quantizer.thresholds
    magnitudes = layer.weight.abs()
    return QuantizedValues(
        name=name,
        bits=quantizer.bits,
        lower=lower,
        upper=upper,
        gamma=1.0 if quantizer.gamma is None else float(quantizer.gamma),
        pruned=_share(magnitudes < lower),
        clipped=_share(magnitudes > upper),
        zero=_share(quantizer.codes_real(weight_to_quantize(layer)).round() == 0),
        sample=_sample(layer.weight, SAMPLES, np.random.default_rng(0)),
        mirrored=True,
    )


@torch.no_grad()
def activation_values(model: nn.Module, images: Tensor) -> dict[str, QuantizedValues]:
    """Return the inputs of each activation quantizer when the model runs, by the quantizer's name.

    Args:
        model: prepared and calibrated; it runs in evaluation mode, and then returns to its mode.
        images: inputs float32 [N, C, H, W], at least one; they go through the model in small batches.

    Raises:
        DataError: images that do not fit (`checked_batches`).
        UnsupportedModelError: a model that is not prepared, is frozen or was never calibrated.
    """
    prepared = prepared_model(model, "activation_values", may_be_frozen=False)
    (checked,) = checked_batches([images], "activation_values", prepared)
    recorder = _Recorder(prepared, SAMPLES // -(-len(images) // _BATCH_SIZE))
    with evaluation_mode(prepared):
        for batch in checked.clone().split(_BATCH_SIZE):
            recorder.run(batch)
    return {name: tally.values(name) for name, tally in recorder.tallies.items()}


def input_quantizers(model: fx.GraphModule) -> dict[str, str]:
    """Return the quantizer whose codes each quantized layer of a prepared model reads, by the layer's name."""
    return {
        str(node.target): _quantizer_before(model, node)
        for node in model.graph.nodes
        if node.op == "call_module" and isinstance(module_of(model, node), QuantConv2d | QuantLinear)
    }


def _quantizer_before(model: fx.GraphModule, node: fx.Node) -> str:
    """Walk back over modules that keep the grid; concatenated tensors share their quantizer."""
    source = node.all_input_nodes[0]
    if isinstance(module_of(model, source), ActivationGrid):
        return str(source.target)
    return _quantizer_before(model, source)


@dataclass
class _Tally:
    quantizer: ActivationGrid
    count: int = 0
    pruned: int = 0
    clipped: int = 0
    zero: int = 0
    samples: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, x: Tensor, sample: NDArray[np.float32]) -> None:
        lower, upper = _ends(self.quantizer)
        below, above = int((x < lower).sum()), int((x > upper).sum())
        is_interval = isinstance(self.quantizer, ActivationQuantizer)
        self.count += x.numel()
        self.pruned += below if is_interval else 0
        self.clipped += above if is_interval else below + above
        self.zero += int((self.quantizer(x) == 0).sum())
        self.samples.append(sample)

    def values(self, name: str) -> QuantizedValues:
        lower, upper = _ends(self.quantizer)
        return QuantizedValues(
            name=name,
            bits=self.quantizer.bits if isinstance(self.quantizer, ActivationQuantizer) else 8,
            lower=lower,
            upper=upper,
            gamma=1.0,
            pruned=self.pruned / self.count,
            clipped=self.clipped / self.count,
            zero=self.zero / self.count,
            sample=np.concatenate(self.samples),
            mirrored=False,
        )


class _Recorder(fx.Interpreter):
    """Runs a prepared model and counts the inputs of each activation quantizer."""

    def __init__(self, model: fx.GraphModule, samples: int) -> None:
        super().__init__(model)
        self.graph_module = model
        self.samples = samples
        self.rng = np.random.default_rng(0)
        self.tallies: dict[str, _Tally] = {}

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - as in the base class
        """Count the input of a quantizer, then run the node."""
        if node.op == "call_module":
            quantizer = module_of(self.graph_module, node)
            if isinstance(quantizer, ActivationGrid):
                x = self.env[node.all_input_nodes[0]]
                tally = self.tallies.setdefault(str(node.target), _Tally(quantizer))
                tally.add(x, _sample(x, self.samples, self.rng))
        return super().run_node(node)


def _ends(quantizer: ActivationGrid) -> tuple[float, float]:
    """Return the smallest and the largest value that has a code of its own."""
    if isinstance(quantizer, ActivationQuantizer):
        return quantizer.thresholds
    if isinstance(quantizer, RangeQuantizer):
        step = float(quantizer.step)
        return quantizer.low * step, quantizer.high * step
    scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
    return -zero_point * scale, (255 - zero_point) * scale


def _share(chosen: Tensor) -> float:
    return int(chosen.sum()) / chosen.numel()


def _sample(tensor: Tensor, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return all values, or `count` of them drawn at random (with repetition)."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > count:
        flat = flat[torch.from_numpy(rng.integers(0, flat.numel(), count)).to(flat.device)]
    values: NDArray[np.float32] = flat.float().cpu().numpy()
    return values
