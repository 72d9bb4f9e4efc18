"""Set the intervals of a prepared model from data, before the task loss moves them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from .errors import DataError
from .graph import input_of, module_of
from .layers import BatchNorm, Concat, QuantConv2d, QuantLayer, QuantLinear, set_output_scale
from .quantizers import ActivationQuantizer, RangeQuantizer

NORMS_STAY: Final = "norms_stay"
"""Key in the `meta` of a prepared model: whether its BatchNorms keep the statistics of the float network."""


@torch.no_grad()
def calibrate(
    model: fx.GraphModule,
    batches: Sequence[Tensor],
    *,
    only: Collection[str] | None = None,
    output_factors: Mapping[str, float] | None = None,
    float_model: nn.Module | None = None,
) -> None:
    """Set activation intervals, 8-bit ranges, output scales and BatchNorm statistics of a prepared model.

    In graph order, each threshold is the one of least squared error (`best_threshold`), its geometric mean
    over the batches so far; BatchNorm normalises by the batch meanwhile, because quantized layers change the
    scale it has to take out. A last pass over the batches re-estimates the running statistics. In a model with
    `output_scales="all"` BatchNorm stays as it is.

    An output scale starts at the product of both clipping thresholds, or, where the float network is given, at the
    scale `s` of least squared error `sum((f - s * y)**2)` over the batches so far, with `f` what the float layer
    returns, `y` what the quantized one does, both without bias: `s = sum(f * y) / sum(y * y)`.

    Args:
        model: from `prepare`.
        batches: inputs, float32 [N, C, H, W] each; a few hundred images are plenty.
        only: names of the quantizers and layers to set (None: all); the others keep their intervals and scales.
        output_factors: by layer, the output scale in units of the product of both clipping thresholds; 1 by default.
        float_model: the network that `model` was prepared from, to set output scales by.

    Raises:
        DataError: no batches.
    """
    if not batches:
        raise DataError("calibration needs at least one batch of images.")
    training = model.training
    model.eval()
    norms_stay = model.meta.get(NORMS_STAY, False)
    if not norms_stay:
        for norm in (module for module in model.modules() if isinstance(module, BatchNorm)):
            norm.train()
    interpreter = _Calibrator(model, only, output_factors or {})
    for batch in batches:
        interpreter.run_batch(batch, {} if float_model is None else _layer_outputs(float_model, batch))
    if not norms_stay:
        estimate_batchnorm(model, batches)
    model.get_buffer("calibrated").fill_(True)
    model.train(training)


@torch.no_grad()
def estimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate the running statistics of every BatchNorm anew, as plain means over batches; all else stays.

    Args:
        model: float or prepared; its mode stays.
        batches: inputs, float32 [N, C, H, W] each.
    """
    training = model.training
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


def calibrate_on_first_batch(model: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Forward pre-hook of a prepared model: calibrate on the first batch that passes in training mode."""
    if model.training and not bool(model.get_buffer("calibrated")) and isinstance(model, fx.GraphModule):
        calibrate(model, [arguments[0]])


class _Calibrator(fx.Interpreter):
    """Runs a prepared model and sets every quantizer from what reaches it, just before it is used."""

    def __init__(
        self, model: fx.GraphModule, only: Collection[str] | None, output_factors: Mapping[str, float]
    ) -> None:
        super().__init__(model)
        self.graph_module = model
        self.only = only
        self.output_factors = output_factors
        self.logs: dict[str, list[float]] = {}
        self.seen: set[str] = set()
        self.float_outputs: dict[str, Tensor] = {}
        self.products: dict[str, list[tuple[float, float]]] = {}

    def run_batch(self, batch: Tensor, float_outputs: dict[str, Tensor]) -> None:
        """Run one batch; `float_outputs` are those of the float layers, by name, without bias."""
        self.seen.clear()
        self.float_outputs = float_outputs
        self.run(batch)

    def run_node(self, node: fx.Node) -> object:
        """Set the quantizer or output scale of a node, then run it."""
        name = str(node.target)
        if node.op == "call_module" and (self.only is None or name in self.only):
            module = module_of(self.graph_module, node)
            if isinstance(module, ActivationQuantizer | RangeQuantizer):
                module.set_largest(self._threshold(name, module.initialize(self.env[input_of(node)])))
            elif isinstance(module, QuantConv2d | QuantLinear):
                set_output_scale(module, input_unit(self.graph_module, node) * self.output_factors.get(name, 1.0))
                if name in self.float_outputs and _is_trained(module.log_output_scale):
                    self._fit_scale(name, module, self.env[input_of(node)])
        return super().run_node(node)

    def _fit_scale(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Set the output scale to that of least squared error against the float layer, over the batches so far."""
        y, f = layer.unscaled(x).double(), self.float_outputs[name].double()
        products = self.products.setdefault(name, [])
        products.append((float((f * y).sum()), float(y.square().sum())))
        along, squares = (sum(column) for column in zip(*products, strict=True))
        if layer.log_output_scale is not None and along > 0 and squares > 0:  # else the layer returns nothing of use
            layer.log_output_scale.fill_(math.log(along / squares))

    def _threshold(self, name: str, largest: float) -> float:
        """Geometric mean over the batches; of the tensors of one batch that share a quantizer, the largest counts."""
        logs = self.logs.setdefault(name, [])
        if name in self.seen:
            logs[-1] = max(logs[-1], math.log(largest))
        else:
            self.seen.add(name)
            logs.append(math.log(largest))
        return math.exp(sum(logs) / len(logs))


def _is_trained(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _layer_outputs(float_model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return what each convolution and linear layer returns for a batch, without its bias, by name."""
    outputs: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Conv2d | nn.Linear, result: Tensor) -> None:
        bias = 0.0 if layer.bias is None else layer.bias if result.ndim == 2 else layer.bias[:, None, None]
        outputs[name] = result - bias

    handles = [
        module.register_forward_hook(lambda layer, _inputs, result, name=name: record(name, layer, result))
        for name, module in float_model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    training = float_model.training
    float_model.eval()
    try:
        float_model(batch)
    finally:
        float_model.train(training)
        for handle in handles:
            handle.remove()
    return outputs


def interval_before(model: fx.GraphModule, node: fx.Node) -> str | None:
    """Return the name of the interval quantizer whose codes a layer of a prepared model reads; None: 8-bit or float."""
    source = input_of(node)
    while source.op == "call_module":
        module = module_of(model, source)
        if isinstance(module, ActivationQuantizer):
            return str(source.target)
        if not isinstance(module, nn.MaxPool2d | nn.Upsample | nn.Flatten | nn.Dropout | nn.Dropout2d | Concat):
            break
        source = source.all_input_nodes[0]
    return None


def input_unit(model: fx.GraphModule, node: fx.Node) -> float:
    """What 1.0 more in the input of a layer stands for: the width of the interval, behind an interval quantizer."""
    name = interval_before(model, node)
    quantizer = None if name is None else model.get_submodule(name)
    if not isinstance(quantizer, ActivationQuantizer):
        return 1.0
    lower, upper = quantizer.thresholds
    return upper - lower
