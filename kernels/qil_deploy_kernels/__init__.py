"""Kernels for convolutions of 2 to 4 bits, which ONNX Runtime loads from one shared library.

`onnxruntime.SessionOptions().register_custom_ops_library(str(library_path()))` is all that a session needs.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

__all__ = ["explain", "layers", "library_path"]


def library_path() -> Path:
    """Return the path of the shared library, for ONNX Runtime to load.

    Raises:
        FileNotFoundError: The package was installed without it.
    """
    path = Path(__file__).with_name("libqil_deploy_kernels.so")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: build it with `make kernels`, or install the wheel anew.")
    return path


def explain() -> str:
    """Return the kernels for each operator on this processor, the set chosen for it, and the reason: lines of text."""
    return _text("qil_deploy_kernels_explain")


def layers() -> list[str]:
    """Return one line per node computed by a kernel in live sessions: the layer, its kernel, and why no other."""
    return _text("qil_deploy_kernels_layers").splitlines()


def _text(function: str) -> str:
    call = getattr(ctypes.CDLL(str(library_path())), function)
    call.restype = ctypes.c_char_p
    text: bytes = call()
    return text.decode()
