"""Find the first parameter, or the first layer on one batch, that is not finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qil_deploy.quantizers import IntervalQuantizer, RangeQuantizer


@torch.no_grad()
def describe_divergence(model: nn.Module, x: Tensor) -> str:
    """Describe which part of a model is not finite, and its interval.

    Args:
        model: its loss is infinite or not a number; it is run once more.
        x: the batch, float32 [N, C, H, W].

    Returns:
        A clause such as "layer3.0.conv1 returns 128 values that are not finite; its weight interval is [0, 0.31]".
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            owner = name.rpartition(".")[0]
            return f"{name} is not finite{_intervals(owner, model.get_submodule(owner))}"
    found = next(_non_finite_results(model, x), None)
    if found is None:
        return "every parameter and every layer's result is finite, so the loss itself overflows"
    name, count = found
    verb = f"returns {count:,} values that are not finite"
    return f"{name} {verb}{_intervals(name, model.get_submodule(name))}"


def _non_finite_results(model: nn.Module, x: Tensor) -> Iterator[tuple[str, int]]:
    """Yield (name, values that are not finite) of the modules without children, in the order they were called."""
    results: list[tuple[str, int]] = []

    def record(name: str, result: object) -> None:
        if isinstance(result, Tensor) and result.is_floating_point():
            results.append((name, int((~result.isfinite()).sum())))

    handles = [
        module.register_forward_hook(lambda _module, _inputs, result, name=name: record(name, result))
        for name, module in model.named_modules()
        if name
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return iter([entry for entry in results if entry[1]])


def _intervals(name: str, module: nn.Module) -> str:
    """Describe the intervals and steps of all quantizers inside a module."""
    described = [
        f"its {inner or 'own'} interval is [{part.thresholds[0]:.6g}, {part.thresholds[1]:.6g}]"
        for inner, part in module.named_modules()
        if isinstance(part, IntervalQuantizer)
    ]
    described += [
        f"its {inner or 'own'} step is {float(part.step):.6g}"
        for inner, part in module.named_modules()
        if isinstance(part, RangeQuantizer)
    ]
    return f"; {', '.join(described)}" if described and name else ""
