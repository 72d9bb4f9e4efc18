"""Quantization Interval Learning for CNNs in 2 to 4 bits: trained in torch, run bit-exactly as integer-only ONNX.

The names below are loaded on first use, so that a device needs neither torch nor onnx to import this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import CheckpointInfo, load_model, save_checkpoint
    from .config import LayerOverride, QuantConfig
    from .integers import freeze
    from .network import calibrate, change_bits, estimate_batchnorm, prepare
    from .preprocessing import Preprocessing

__version__ = "0.1.0"

__all__ = [
    "CheckpointInfo",
    "LayerOverride",
    "Preprocessing",
    "QuantConfig",
    "calibrate",
    "change_bits",
    "estimate_batchnorm",
    "freeze",
    "load_model",
    "prepare",
    "save_checkpoint",
]

_HOMES = {
    "CheckpointInfo": "checkpoint",
    "LayerOverride": "config",
    "Preprocessing": "preprocessing",
    "QuantConfig": "config",
    "calibrate": "network",
    "change_bits": "network",
    "estimate_batchnorm": "network",
    "freeze": "integers",
    "load_model": "checkpoint",
    "prepare": "network",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
