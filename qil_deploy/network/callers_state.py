"""Preserve the state of a caller's program: modes of modules, random numbers, inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Restore the mode of every single module at the end.

    `model.train(model.training)` would not: a BatchNorm that the caller keeps in evaluation mode would start to learn.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode for a while (`modes_kept`)."""
    with modes_kept(*models):
        for model in models:
            model.eval()
        yield


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Leave the caller's random generators untouched, and make trainable tensors in inference mode, too.

    New layers start from random numbers although their weights are replaced at once, and a network's own code may draw
    some when it is captured.
    """
    trainable = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices), trainable:
        yield
