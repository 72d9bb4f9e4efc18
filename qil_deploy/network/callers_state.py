"""What a caller's program has set up and finds unchanged: modes of modules, random numbers, inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Give, at the end, every single module back the mode it had.

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
    """Draw no random numbers from the caller's generators, and make tensors that can be trained in inference mode, too.

    New layers start from random numbers although their weights are replaced at once, and a network's own code may draw
    some when it is captured.
    """
    trainable = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices), trainable:
        yield
