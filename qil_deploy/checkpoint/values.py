"""Check that the tensors of a rebuilt model are within their ranges, and agree with each other and with its config.

A model is rebuilt twice over: `prepare` and `freeze` give every module what follows from config and preprocessing, then
the tensors of the file are loaded. What follows from the config has to come out of the file as well:

    InputQuantizer, FrozenInput    scale and zero point of the preprocessing
    Grid                           zero point, and the scale 1/q of low-bit codes
    FrozenLayer                    codes of at most q_W, and a spread that keeps int8 and int16

Everything else has to be possible: steps, distances and scales positive and far from float32's ends, variances not
negative, denominators odd, rescale ratios those of the steps they were made from, and one grid per tensor, whoever
writes or reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import CheckpointError
from qil_deploy.integers import (
    BIAS_LIMIT,
    LARGEST_DENOMINATOR,
    MAX_DENOMINATOR,
    FrozenAdd,
    FrozenConstantPad,
    FrozenGlobalAveragePool,
    FrozenInput,
    FrozenLayer,
    FrozenMeanLogits,
    FrozenModule,
    FrozenRescale,
    Grid,
    largest_spread,
    shrink_factor,
)
from qil_deploy.network import MOVING_KINDS, BatchNorm, QuantConv2d, QuantLinear, kind_of, module_of, require_finite
from qil_deploy.quantizers import LARGEST_LOG, InputQuantizer, IntervalQuantizer, RangeQuantizer
from qil_deploy.untrusted_text import excerpt

_SMALLEST_SCALE, _LARGEST_SCALE = math.exp(-LARGEST_LOG), math.exp(LARGEST_LOG)
_LARGEST_NUMERATOR = 2**40  # ratios are at most 2**19, denominators 2**12
_NEARLY = 1.01  # a shrunk ratio ends at the limit, but for the rounding of its numerator
_BIAS_MARGIN = 2**16  # the float32 scale that a bias of BIAS_LIMIT is divided by may be rounded down

_Problem = Callable[[str], NoReturn]
_Values = tuple[float, int, int, int]  # scale, zero point, low and high of a grid


def scalars_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's scalars; those of a model just rebuilt follow from config and preprocessing."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.ndim == 0}


def check_values(model: nn.Module, rebuilt: Mapping[str, Tensor], source: str) -> None:
    """Check a model whose tensors were loaded.

    Args:
        model: float, prepared or frozen.
        rebuilt: its scalars before they were loaded, from `scalars_of`.
        source: where the tensors come from, for messages.

    Raises:
        CheckpointError: a value is not finite, out of its range, or contradicts another; it names the tensor.
    """
    require_finite(model.state_dict().items(), source, error=CheckpointError)

    def problem(clause: str) -> NoReturn:
        raise CheckpointError(
            f"{source} contradicts itself: {clause}; it was damaged or changed: restore it from a copy or train again."
        )

    _check_modules(model, rebuilt, problem)
    if "calibrated" in rebuilt and not bool(model.get_buffer("calibrated")):
        problem("its intervals were never set ('calibrated' is false)")
    if isinstance(model, fx.GraphModule):
        _check_grids_agree(model, problem)


def _check_modules(model: nn.Module, rebuilt: Mapping[str, Tensor], problem: _Problem) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            _check_norm(name, module, problem)
        elif isinstance(module, InputQuantizer):
            _check_same(f"{name}.scale", module.scale, rebuilt, problem)
            _check_same(f"{name}.zero_point", module.zero_point, rebuilt, problem)
        elif isinstance(module, IntervalQuantizer | RangeQuantizer | QuantConv2d | QuantLinear):
            _check_learned(name, module, problem)
        elif isinstance(module, Grid):
            _check_grid(name, module, rebuilt, problem)
        elif isinstance(module, FrozenLayer):
            _check_layer(name, module, problem)
        elif isinstance(module, FrozenRescale | FrozenAdd | FrozenGlobalAveragePool | FrozenMeanLogits):
            _check_rescale(name, module, problem)


def _check_norm(name: str, norm: BatchNorm, problem: _Problem) -> None:
    if norm.running_var is not None and norm.running_var.numel() and float(norm.running_var.min()) < 0:
        problem(f"{name}.running_var holds a negative variance, {float(norm.running_var.min()):.6g}")
    if norm.num_batches_tracked is not None and int(norm.num_batches_tracked) < 0:
        problem(f"{name}.num_batches_tracked is {int(norm.num_batches_tracked)}, a count")


def _check_learned(
    name: str, module: IntervalQuantizer | RangeQuantizer | QuantConv2d | QuantLinear, problem: _Problem
) -> None:
    """Check the dimensionless parameters of a quantizer, or the output scale of a layer."""
    if isinstance(module, IntervalQuantizer):
        fault = module.fault()
        if fault is not None:
            problem(f"{name}.{fault}")
        return
    parameter = "log_step" if isinstance(module, RangeQuantizer) else "log_output_scale"
    value = getattr(module, parameter)
    largest = 0.0 if value is None else max(map(float, value.detach().aminmax()), key=abs)
    if abs(largest) > LARGEST_LOG:
        problem(f"{name}.{parameter} is {largest:.6g}, beyond {-LARGEST_LOG:g} to {LARGEST_LOG:g}")
    if isinstance(module, QuantConv2d | QuantLinear) and module.channel_sizes is not None:
        _check_channels(name, module, problem)


def _check_channels(name: str, layer: QuantConv2d | QuantLinear, problem: _Problem) -> None:
    """Check the per-channel values of a layer."""
    if layer.channel_sizes is not None:
        _check_scale(f"{name}.channel_sizes", layer.channel_sizes, problem)
    largest = 0.0 if layer.output_shift is None else float(layer.output_shift.detach().abs().max())
    if largest > _LARGEST_SCALE:
        problem(f"{name}.output_shift reaches {largest:.6g}, beyond {_LARGEST_SCALE:.6g}")


def _check_same(name: str, value: Tensor, rebuilt: Mapping[str, Tensor], problem: _Problem) -> None:
    """Check a value that follows from config and preprocessing."""
    if not torch.equal(value, rebuilt[name]):
        problem(f"{name} is {value.item():.9g}, but its config and preprocessing ask for {rebuilt[name].item():.9g}")


def _check_scale(name: str, value: Tensor, problem: _Problem) -> None:
    values = value.detach().double()
    if values.numel() and not _SMALLEST_SCALE <= float(values.min()) <= float(values.max()) <= _LARGEST_SCALE:
        wrong = values[(values < _SMALLEST_SCALE) | (values > _LARGEST_SCALE)]
        problem(f"{name} is {float(wrong.reshape(-1)[0]):.6g}, where a scale has to be positive and of float32's range")


def _check_grid(name: str, grid: Grid, rebuilt: Mapping[str, Tensor], problem: _Problem) -> None:
    _check_scale(f"{name}.scale", grid.scale, problem)
    _check_same(f"{name}.zero_point", grid.zero_point, rebuilt, problem)
    largest = 255
    if grid.low_bit:
        _check_same(f"{name}.scale", grid.scale, rebuilt, problem)
        largest = round(1.0 / float(grid.scale))
    low, high = grid.limits()
    if not 0 <= low <= high <= largest:
        problem(f"the codes of {name} go from {low} to {high}, not between 0 and {largest}")


def _check_layer(name: str, layer: FrozenLayer, problem: _Problem) -> None:
    largest = layer.layer.weight_quantizer.largest_code
    found = max(abs(int(end)) for end in layer.weight_codes.aminmax())  # as int32, codes would be four times as large
    if found > largest:
        bits = layer.layer.weight_quantizer.bits
        problem(f"{name}.weight_codes has the code {found}, but {bits} bits, as its config says, end at {largest}")
    limit = largest_spread(largest, max(int(layer.x.high), int(layer.x.zero_point)))
    if not 1 <= int(layer.spread.min()) <= int(layer.spread.max()) <= limit:
        problem(
            f"{name}.spread goes from {int(layer.spread.min())} to {int(layer.spread.max())}, not from 1 to {limit}"
        )
    bias = int(layer.bias.long().abs().max())
    if bias > BIAS_LIMIT + _BIAS_MARGIN:
        problem(f"{name}.bias holds {bias:,}, beyond {BIAS_LIMIT:,}")
    _check_scale(f"{name}.w_scale", layer.w_scale, problem)
    _check_scale(f"{name}.y_step", layer.y_step, problem)
    if abs(float(layer.y_offset)) > _LARGEST_SCALE:
        problem(f"{name}.y_offset is {float(layer.y_offset):.6g}")
    if layer.y is not None and not layer.y.low_bit and not torch.equal(layer.y_step, layer.y.scale):
        problem(f"{name}.y_step is {float(layer.y_step):.9g}, but {name}.y.scale {float(layer.y.scale):.9g}")


def _check_rescale(
    name: str, module: FrozenRescale | FrozenAdd | FrozenGlobalAveragePool | FrozenMeanLogits, problem: _Problem
) -> None:
    """Check that fractions are valid, and the ratios of steps that they represent."""
    if isinstance(module, FrozenMeanLogits):
        expected = torch.tensor(float(module.x.scale) / module.window, dtype=torch.float32)
        if not torch.equal(module.scale, expected):
            problem(f"{name}.scale is {float(module.scale):.9g}, but a mean of {module.window} asks for {expected:.9g}")
        return
    denominator = int(module.denominator)
    most = LARGEST_DENOMINATOR if isinstance(module, FrozenGlobalAveragePool) else MAX_DENOMINATOR
    if not (1 <= denominator <= most and denominator % 2):
        problem(f"{name}.denominator is {denominator}, not an odd number up to {most}")
    if isinstance(module, FrozenRescale):
        _check_scale(f"{name}.y_step", module.y_step, problem)
        if abs(int(module.offset_numerator)) > _LARGEST_NUMERATOR:
            problem(f"{name}.offset_numerator is {int(module.offset_numerator):,}")
    offset = abs(int(module.offset_numerator)) if isinstance(module, FrozenRescale) else 0
    ratios = list(_ratios(module))
    terms = [offset / denominator, *(numerator / denominator * codes for numerator, _, codes in ratios)]
    shrunk = shrink_factor([_NEARLY * term for term in terms]) < 1.0
    for numerator, ratio, _ in ratios:
        if not 1 <= numerator <= _LARGEST_NUMERATOR:
            problem(f"the numerator of {name} is {numerator:,}, not between 1 and {_LARGEST_NUMERATOR:,}")
        # An extreme ratio is shrunk, so that it can be rescaled exactly; the smallest numerator is 1.
        smallest = 0.0 if shrunk else ratio * denominator - 1.0
        if not smallest <= numerator <= ratio * denominator + 1.0:
            problem(
                f"{name} rescales by {numerator}/{denominator}, but the steps before and after it ask for {ratio:.6g}"
            )


def _ratios(module: FrozenRescale | FrozenAdd | FrozenGlobalAveragePool) -> Iterator[tuple[int, float, int]]:
    """Yield (numerator, ratio of the steps, largest code that is multiplied) of each operand."""
    if isinstance(module, FrozenAdd):
        for numerator, x in zip(module.numerators.tolist(), (module.a, module.b), strict=True):
            yield numerator, float(x.scale) / float(module.y.scale), 255 + int(x.zero_point)
    elif isinstance(module, FrozenGlobalAveragePool):
        ratio = float(module.x.scale) / (module.window * float(module.y.scale))
        yield int(module.numerator), ratio, 255 * module.window
    else:
        yield int(module.numerator), float(module.x.scale) / float(module.y_step), 255 + int(module.x.zero_point)


def _check_grids_agree(model: fx.GraphModule, problem: _Problem) -> None:
    """Check that every reader of a tensor has its writer's grid."""
    grids: dict[fx.Node, _Values] = {}
    for node in model.graph.nodes:
        if node.op != "call_module":
            continue
        module = module_of(model, node)
        sources = [grids[source] for source in node.args if isinstance(source, fx.Node) and source in grids]
        if isinstance(module, FrozenInput):
            grids[node] = (float(module.scale), int(module.zero_point), 0, 255)
        elif isinstance(module, FrozenModule):
            for read, written in zip(module.reads(), sources, strict=False):
                if _values(read) != written:
                    problem(f"{node.target} reads codes on the grid {_values(read)}, which are written on {written}")
            if module.y is not None:
                grids[node] = _values(module.y)
        elif kind_of(model, node) in MOVING_KINDS and sources:
            grids[node] = _joined(str(node.target), sources, problem)
            if isinstance(module, FrozenConstantPad):
                scale, zero_point, low, high = grids[node]
                grids[node] = (scale, zero_point, min(low, int(module.code)), max(high, int(module.code)))


def _values(grid: Grid) -> _Values:
    return (float(grid.scale), int(grid.zero_point), *grid.limits())


def _joined(name: str, sources: list[_Values], problem: _Problem) -> _Values:
    scales, zero_points, lows, highs = zip(*sources, strict=True)
    if len(set(scales)) > 1 or len(set(zero_points)) > 1:
        problem(f"{excerpt(name)} joins tensors of the steps {excerpt(sorted(set(scales)))}")
    return (scales[0], zero_points[0], min(lows), max(highs))
