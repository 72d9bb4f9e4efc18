"""Kernels that a library chooses for a file on this processor: the set for each operator, the kernel for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qil_deploy.onnx_io import read_model

from .kernel_library import KernelLibrary, operators_in, why_unused
from .sessions import create_session


@dataclass(frozen=True, kw_only=True)
class ExplainedKernels:
    """Choices of a library for a file.

    Attributes:
        library: its path.
        choices: the set that is chosen on this processor for each operator of the file, and why; or 'none', and why.
        layers: a line for each node that a kernel computes: the layer, its kernel, and why no other.
        unused: where the library has nothing to compute, a sentence each.
    """

    library: str
    choices: dict[str, str]
    layers: tuple[str, ...]
    unused: tuple[str, ...]


def explain_kernels(path: Path, library: KernelLibrary) -> ExplainedKernels:
    """Get a library's choices for the file at `path`.

    Raises:
        ConfigError: the library cannot be used.
        ModelFileError: the file cannot be read, or ONNX Runtime cannot load it.
    """
    graph = read_model(path, left_out=[])
    choices = library.choices_for(operators_in(graph))
    return ExplainedKernels(
        library=str(library.path),
        choices=choices,
        layers=layer_kernels(path, library),
        unused=tuple(why_unused(graph, choices)),
    )


def layer_kernels(path: Path, library: KernelLibrary) -> tuple[str, ...]:
    """Return one line for each layer computed by a kernel of the library: which kernel, and why no other."""
    before = len(library.layers())
    session = create_session(path, kernels=library)  # while it lives, the library knows its layers
    lines = library.layers()[before:]
    del session
    return lines
