"""The option `--kernels` of commands that run sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qil_deploy.runtime_tests.kernel_library import KernelLibrary

KernelOption = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        metavar="installed|FILE",
        help="Also with the kernels of the package qil-deploy-kernels, or of a library of yours.",
    ),
]


def named_library(where: str | None) -> KernelLibrary | None:
    """Return the library that the option names, if it is given."""
    from qil_deploy.runtime_tests.kernel_library import find_kernel_library

    return None if where is None else find_kernel_library(where)
