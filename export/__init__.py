"""Export of frozen models to ONNX, with proof: fold, lower, pack, certify, write.

The names below are loaded on first use: `python -m qil_deploy.export` loads this package before it can print anything.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .certify import CertificateLine
    from .export import ExportResult, export_onnx
    from .float_model import export_float_onnx
    from .options import ExportOptions

__all__ = ["CertificateLine", "ExportOptions", "ExportResult", "export_float_onnx", "export_onnx"]

_HOMES = {
    "CertificateLine": "certify",
    "ExportOptions": "options",
    "ExportResult": "export",
    "export_float_onnx": "float_model",
    "export_onnx": "export",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
