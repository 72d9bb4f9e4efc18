"""Start the intervals of a prepared model from data: `calibrate` on a model and batches already checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import DataError, QilDeployError, UnsupportedModelError
from qil_deploy.quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer

from .callers_state import evaluation_mode
from .graph import input_of, kind_of, module_of
from .layers import BatchNorm, QuantConv2d, QuantLayer, QuantLinear, set_output_scale
from .operator_row import MOVING_KINDS

CALIBRATED: Final = "calibrated"
"""The buffer of a prepared model that says whether its intervals were set."""

_FLAT: Final = 1e-9  # share of a channel's squares below which its sums count as constant

NORMS_STAY: Final = "norms_stay"
"""Key in the `meta` of a prepared model: whether its BatchNorms keep the statistics of the float network."""


@torch.no_grad()
def set_intervals(
    model: fx.GraphModule,
    batches: Sequence[Tensor],
    *,
    only: Collection[str] | None = None,
    output_factors: Mapping[str, float] | None = None,
    float_model: nn.Module | None = None,
) -> None:
    """Set intervals, ranges, output scales and BatchNorm statistics; arguments and algebra as in `calibrate`.

    Raises:
        DataError: values that reach a quantizer are not finite.
    """
    norms_stay = model.meta.get(NORMS_STAY, False)
    if float_model is None and any(getattr(module, "output_shift", None) is not None for module in model.modules()):
        raise UnsupportedModelError(
            "scale and shift of every channel (output_scales='channels') are set to match the float network; call "
            "calibrate(model, batches, float_model=network)."
        )
    interpreter = _Calibrator(model, only, output_factors or {})
    with calibration_modes(model):
        for batch in batches:
            interpreter.run_batch(batch.clone(), {} if float_model is None else layer_outputs(float_model, batch))
    calibrated = model.get_buffer(CALIBRATED)
    before = bool(calibrated)
    calibrated.fill_(True)
    if not norms_stay:
        try:
            estimate_statistics(model, batches)
        except BaseException:
            calibrated.fill_(before)
            raise


@contextmanager
def calibration_modes(model: fx.GraphModule) -> Iterator[None]:
    """Put a prepared model into evaluation mode for a while, with each BatchNorm that learns using batch statistics."""
    with evaluation_mode(model):
        for norm in (module for module in model.modules() if isinstance(module, BatchNorm)):
            norm.train(not model.meta.get(NORMS_STAY, False))
        yield


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Estimate BatchNorm's running statistics anew, as plain means over batches; all of them change, or none.

    A BatchNorm that the model does not call keeps its statistics.

    Raises:
        DataError: the model does not run on a batch.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    statistics = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    finished = False
    try:
        with evaluation_mode(model):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over the batches
            for index, batch in enumerate(batches):
                _run(model, batch, index)
        finished = True
    finally:
        for norm, momentum, before in zip(norms, momenta, statistics, strict=True):
            norm.momentum = momentum
            if not finished or norm.num_batches_tracked == 0:
                for name, buffer in norm.named_buffers():
                    buffer.copy_(before[name])


def _run(model: nn.Module, batch: Tensor, index: int) -> None:
    try:
        model(batch.clone())
    except QilDeployError:
        raise
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"BatchNorm's statistics: the network does not run on batch {index}, of shape {list(batch.shape)}: {error}"
        ) from error


class _Calibrator(fx.Interpreter):
    """Runs a prepared model and sets every quantizer from its input, just before it is used."""

    def __init__(
        self, model: fx.GraphModule, only: Collection[str] | None, output_factors: Mapping[str, float]
    ) -> None:
        super().__init__(model)
        self.extra_traceback = False  # it would be added to the message of an error
        self.graph_module = model
        self.only = only
        self.output_factors = output_factors
        self.logs: dict[str, list[float]] = {}
        self.seen: set[str] = set()
        self.float_outputs: dict[str, Tensor] = {}
        self.products: dict[str, list[tuple[float, float]]] = {}
        self.moments: dict[str, Tensor] = {}

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
                if name in self.float_outputs and module.output_shift is not None:
                    self._fit_channels(node, module)
                elif name in self.float_outputs and module.log_output_scale is not None:
                    self._fit_scale(node, module)
        return super().run_node(node)

    def _fit_scale(self, node: fx.Node, layer: QuantLayer) -> None:
        """Set the output scale of least squared error against the float layer, over the batches so far."""
        y, f = self._results(node, layer)
        if self._reads_grid_of_pixels(node):  # a part of the float layer's sums is a bias here (`image_layers`)
            over = [dim for dim in range(y.ndim) if dim != 1]
            y, f = (values - values.mean(over, keepdim=True) for values in (y, f))
        products = self.products.setdefault(str(node.target), [])
        products.append((float((f * y).sum()), float(y.square().sum())))
        along, squares = (sum(column) for column in zip(*products, strict=True))
        if layer.log_output_scale is not None and along > 0 and squares > 0:  # else the layer returns nothing of use
            layer.log_output_scale.fill_(math.log(along / squares))

    def _fit_channels(self, node: fx.Node, layer: QuantLayer) -> None:
        """Set the scale and shift of every channel of least squared error, over the batches so far.

        A channel that the quantized layer keeps constant has the scale of the others together, and its shift.
        """
        name = str(node.target)
        y, f = self._results(node, layer)
        over = [dim for dim in range(y.ndim) if dim != 1]
        count = torch.full((y.shape[1],), y.numel() / y.shape[1], dtype=torch.float64, device=y.device)
        found = torch.stack([count, *(values.sum(over) for values in (y, f, y * y, y * f))])
        moments = self.moments[name] = self.moments[name] + found if name in self.moments else found
        count, mean_y, mean_f = moments[0], moments[1] / moments[0], moments[2] / moments[0]
        spread, along = moments[3] - count * mean_y.square(), moments[4] - count * mean_y * mean_f
        usable = (spread > _FLAT * moments[3]) & (along > 0)
        together = float(along[usable].sum() / spread[usable].sum()) if usable.any() else 1.0
        scale = torch.where(usable, along / spread.where(usable, torch.ones_like(spread)), together)
        if layer.log_output_scale is not None and layer.output_shift is not None:
            layer.log_output_scale.copy_(scale.log())
            if not self._reads_grid_of_pixels(node):  # there, the float layer's constant is a bias already
                layer.output_shift.copy_(mean_f / scale - mean_y)

    def _results(self, node: fx.Node, layer: QuantLayer) -> tuple[Tensor, Tensor]:
        """Return the unscaled results of a quantized layer, and those of the float layer; float64."""
        y = layer.unscaled(self.env[input_of(node)]).double()
        return y, self.float_outputs[str(node.target)].double().reshape(y.shape)

    def _reads_grid_of_pixels(self, node: fx.Node) -> bool:
        quantizer = image_quantizer(self.graph_module, node)
        return quantizer is not None and quantizer.shift is not None

    def _threshold(self, name: str, largest: float) -> float:
        """Geometric mean over the batches; of the tensors of one batch that share a quantizer, the largest counts."""
        if not math.isfinite(largest):
            raise DataError(
                f"calibration: values that reach {name!r} are NaN or infinite, although images and weights are finite; "
                "the network overflows on these images."
            )
        logs = self.logs.setdefault(name, [])
        if name in self.seen:
            logs[-1] = max(logs[-1], math.log(largest))
        else:
            self.seen.add(name)
            logs.append(math.log(largest))
        return math.exp(sum(logs) / len(logs))


def layer_outputs(float_model: nn.Module, batch: Tensor, wanted: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the results of convolutions and linear layers for a batch, without their bias, by name.

    Args:
        float_model: any network.
        batch: [N, C, H, W].
        wanted: names of the layers; None: all.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Conv1d | nn.Conv2d | nn.Linear, result: Tensor) -> None:
        channels_last = result if isinstance(layer, nn.Linear) else result.movedim(1, -1)
        outputs[name] = (channels_last if layer.bias is None else channels_last - layer.bias).movedim(-1, 1)

    handles = [
        module.register_forward_hook(lambda layer, _inputs, result, name=name: record(name, layer, result))
        for name, module in float_model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and (wanted is None or name in wanted)
    ]
    try:
        with evaluation_mode(float_model):
            float_model(batch.clone())
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def image_quantizer(model: fx.GraphModule, node: fx.Node) -> InputQuantizer | None:
    """Return the quantizer of the image, for a layer of a prepared model that reads the image; else None."""
    source = input_of(node)
    while kind_of(model, source) in MOVING_KINDS:
        source = source.all_input_nodes[0]
    module = module_of(model, source) if source.op == "call_module" else None
    return module if isinstance(module, InputQuantizer) else None


def interval_before(model: fx.GraphModule, node: fx.Node) -> str | None:
    """Return the name of the interval quantizer whose codes a layer of a prepared model reads; None: 8-bit or float."""
    source = input_of(node)
    while source.op == "call_module":
        module = module_of(model, source)
        if isinstance(module, ActivationQuantizer):
            return str(source.target)
        if kind_of(model, source) not in MOVING_KINDS:
            break
        source = source.all_input_nodes[0]
    return None


def input_unit(model: fx.GraphModule, node: fx.Node) -> float:
    """Unit of a layer's input: the width of the interval, if an interval quantizer precedes it; else 1."""
    name = interval_before(model, node)
    quantizer = None if name is None else model.get_submodule(name)
    if not isinstance(quantizer, ActivationQuantizer):
        return 1.0
    lower, upper = quantizer.thresholds
    return upper - lower
