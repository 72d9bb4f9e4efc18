"""Compare a traced graph with the network that it came from.

A graph says which result is read where. That is not all that a network can do: what it writes in place changes tensors
that are read elsewhere, hooks change results, and code may look at numbers. None of this is in the graph, and quantized
it would be another network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from qil_deploy.errors import UnsupportedModelError

from .callers_state import evaluation_mode

RELATIVE_TOLERANCE: Final = 1e-5


@torch.no_grad()
def require_same_function(network: nn.Module, graph: nn.Module, example: Tensor) -> None:
    """Compare a network and the graph traced from it in evaluation mode, on an example and on noise.

    In the graph nothing is written in place. The two may differ by `RELATIVE_TOLERANCE` of the network's largest
    output: float sums need not have one order.

    Args:
        network: the user's.
        graph: what was traced from it; it may share modules with the network.
        example: inputs, float32 [N, C, H, W]; the first is used.

    Raises:
        UnsupportedModelError: they differ, or the network does not return finite logits.
    """
    device = next((parameter.device for parameter in network.parameters()), example.device)
    noise = torch.randn(
        example[:1].shape, dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    inputs = {"the example input": example[:1], "noise": noise}
    with evaluation_mode(network, graph):
        expected = {name: _run(network, x.to(device, copy=True), name) for name, x in inputs.items()}
        with _nothing_written_in_place(graph):
            for name, x in inputs.items():
                _compare(expected[name], graph(x.to(device, copy=True)), name)


@contextmanager
def _nothing_written_in_place(graph: nn.Module) -> Iterator[None]:
    writing = [module for module in graph.modules() if getattr(module, "inplace", False) is True]
    for module in writing:
        module.inplace = False  # type: ignore[assignment] # a flag of ReLU and others, not a tensor
    try:
        yield
    finally:
        for module in writing:
            module.inplace = True  # type: ignore[assignment] # as above


def _run(network: nn.Module, x: Tensor, name: str) -> Tensor:
    try:
        result = network(x)
    except Exception as error:  # any Python of the user's runs
        raise UnsupportedModelError(f"the network fails on {name}, of shape {list(x.shape)}: {error}") from error
    if not isinstance(result, Tensor):
        raise UnsupportedModelError(
            f"the network returns {type(result).__name__!r} in evaluation mode; it has to return one tensor of logits."
        )
    return result


def _compare(expected: Tensor, found: Tensor, name: str) -> None:
    if not bool(expected.isfinite().all()):
        raise UnsupportedModelError(
            f"the network returns NaN or infinity for {name}; it cannot be quantized like this."
        )
    largest = float(expected.abs().max())
    difference = float((expected - found).abs().max()) if expected.shape == found.shape else float("inf")
    if not difference <= RELATIVE_TOLERANCE * largest:
        raise UnsupportedModelError(
            f"what torch.fx traced is not the network: on {name} they differ by {difference:.3g}, where the largest "
            f"output is {largest:.3g}. The reason may be an operation that writes into a tensor which is read again (a "
            "ReLU with inplace=True, +=): let it return a new one. Or it is a forward hook, or a forward that depends "
            "on the training mode or on numbers."
        )
