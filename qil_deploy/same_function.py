"""Compare a traced graph with the network: tracing sees neither what is written in place nor what hooks do."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from .callers_state import evaluation_mode
from .errors import UnsupportedModelError

RELATIVE_TOLERANCE: Final = 1e-5


@torch.no_grad()
def require_same_function(network: nn.Module, graph: nn.Module, example: Tensor) -> None:
    """Compare a network and the graph traced from it in evaluation mode, on an example and on noise.

    They may differ by `RELATIVE_TOLERANCE` of the network's largest output: float sums need not have one order.

    Args:
        network: the user's.
        graph: what was traced from it.
        example: inputs, float32 [N, C, H, W]; the first is used.

    Raises:
        UnsupportedModelError: they differ, or the network does not return finite logits.
    """
    device = next((parameter.device for parameter in network.parameters()), example.device)
    noise = torch.randn(example[:1].shape, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(network, graph):
        for x, name in ((example[:1], "the example input"), (noise, "noise")):
            expected, found = _run(network, x.to(device, copy=True), name), graph(x.to(device, copy=True))
            _compare(expected, found, name)


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
