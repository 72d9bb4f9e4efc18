"""The available methods, and the quantizers for a `QuantConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .contract import ActivationQuantizer, Method, WeightQuantizer
from .lsq import LSQ
from .qil import QIL

if TYPE_CHECKING:
    from qil_deploy.config import QuantConfig

METHODS: Final[dict[str, Method]] = {method.name: method for method in (QIL, LSQ)}


def weight_quantizer(bits: int, config: QuantConfig) -> WeightQuantizer:
    """Return a quantizer of weights by the method of `config`; `initialize` sets it from the weights."""
    return METHODS[config.method].weights(bits, config)


def activation_quantizer(bits: int, config: QuantConfig, *, signed: bool) -> ActivationQuantizer:
    """Return a quantizer of activations by the method of `config`; `initialize` and `set_largest` set it from data."""
    return METHODS[config.method].activations(bits, signed, config)
