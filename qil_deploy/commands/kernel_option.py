"""The option `--kernels`: its meaning for each command, and the combinations that are refused.

    bench, verify            on this machine: with the library, too; on an emulated processor or a device: with it alone
    inspect, doctor          with the library, too, on this machine
    phone, --target wasm     browsers load no native libraries: refused, before work starts

`export --kernels` is a switch of its own: it writes files for the library. Commands that train (train, demo,
sensitivity) write none of these, and `report` puts together what others measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from qil_deploy.errors import ConfigError

if TYPE_CHECKING:
    from qil_deploy.runtime_tests.kernel_library import KernelLibrary

NO_KERNELS_IN_BROWSERS: Final = (
    "--kernels names a native library, which browsers do not load; leave it out: the same file runs there without, "
    "with the same results."
)

KernelOption = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        metavar="installed|FILE",
        help="Also with the kernels of the package qil-deploy-kernels, or of a library of yours; on targets with them "
        "alone.",
    ),
]


def _refuse(where: str | None) -> None:
    if where is not None:
        raise ConfigError(NO_KERNELS_IN_BROWSERS)


RefusedKernelOption = Annotated[
    str | None, typer.Option("--kernels", hidden=True, callback=_refuse, expose_value=False)
]


def named_library(where: str | None) -> KernelLibrary | None:
    """Return the library that the option names, if it is given."""
    from qil_deploy.runtime_tests.kernel_library import find_kernel_library

    return None if where is None else find_kernel_library(where)
