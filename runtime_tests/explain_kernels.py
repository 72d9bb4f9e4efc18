"""What a kernel library does for a file on this processor: which set each operator gets, which kernel each layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qil_deploy.onnx_io import read_model

from .kernel_library import KernelLibrary, operators_in, why_unused
from .sessions import create_session


@dataclass(frozen=True, kw_only=True)
class ExplainedKernels:
    """What a library does for a file.

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
    """Ask a library what it does for the file at `path`.

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
    """Return one line for each layer of a file that a kernel of the library computes: which, and why no other."""
    before = len(library.layers())
    session = create_session(path, kernels=library)  # while it lives, the library knows its layers
    lines = library.layers()[before:]
    del session
    return lines
