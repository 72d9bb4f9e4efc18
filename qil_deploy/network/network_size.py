"""Size of a network, found before memory is allocated for it: it is built and run on the meta device, without data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """The size of a network.

    Attributes:
        values: of all parameters and buffers together; infinite where no machine could count them.
        largest_result: values of the largest tensor that a module returns for one image, infinite likewise; None where
            the network does not run on the meta device.
    """

    values: float
    largest_result: float | None


def measure_network(build: Callable[[], nn.Module], image: tuple[int, int, int]) -> NetworkSize | None:
    """Return the size of the network that `build` returns, for one image [C, H, W]; None where it cannot be told.

    It cannot be told where `build` or `forward` needs values, which tensors on the meta device do not have, or fails.
    Draws none of torch's random numbers.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # any warnings come when the network is really built
        try:
            with torch.device("meta"):
                network = build()
            values = sum(tensor.numel() for tensor in network.state_dict().values())
        except Exception as error:  # noqa: BLE001 - any Python of the user's runs, here and when it is really built
            return NetworkSize(values=math.inf, largest_result=None) if _overflows(error) else None
        return NetworkSize(values=values, largest_result=_largest_result(network.eval(), image))


@torch.no_grad()
def _largest_result(network: nn.Module, image: tuple[int, int, int]) -> float | None:
    largest = math.prod(image)

    def note(_module: nn.Module, _inputs: object, result: object) -> None:
        nonlocal largest
        if isinstance(result, Tensor):
            largest = max(largest, result.numel())

    for module in network.modules():
        module.register_forward_hook(note)
    try:
        network(torch.zeros(1, *image, device="meta"))
    except Exception as error:  # noqa: BLE001 - as above
        return math.inf if _overflows(error) else None
    return largest


def _overflows(error: Exception) -> bool:
    """Whether an error of torch says that a tensor has more values than 64 bits can count."""
    return "overflow" in str(error).lower()
