"""`target`: list the other machines that a model can run as here, and set them up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

target_app = typer.Typer(
    help="Set up and list other instruction sets and devices to verify models on.", no_args_is_help=True
)


@target_app.command("list")
def list_command() -> None:
    """List the targets and what each of them still needs."""
    from qil_deploy.runtime_tests.instructions import counter_state
    from qil_deploy.runtime_tests.targets import DEVICE_FORMS, TARGETS, find_target, target_state
    from qil_deploy.terminal import Column, Console, Table

    table = Table("", ("target", *(Column(heading=heading, text=True) for heading in ("what it is", "state"))))
    rows = [(target.name, target) for target in TARGETS.values()]
    rows += [(form, find_target(example)) for form, example in DEVICE_FORMS.items()]
    states = [(name, target.about, target_state(target)) for name, target in rows]
    states += [("instructions", "no target: counts those that haswell and arm64 execute (bench)", counter_state())]
    for name, about, reason in states:
        table.row(name, about, "ready" if reason is None else reason)
    Console().print(table)


@target_app.command("setup")
def setup_command(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="haswell, arm64 (with all of its processors), wasm; or instructions."),
    ],
) -> None:
    """Set up a target: haswell and arm64 with this machine's apt and pip (some 200 MB), wasm with its npm (14 MB).

    `instructions` sets up instruction counting on haswell and arm64; it needs apt and a C compiler (40 MB).

    Nothing is installed, and no root is needed.
    """
    from qil_deploy.runtime_tests.targets import set_up_target
    from qil_deploy.terminal import Console

    console = Console(stderr=True)
    with console.status("") as status:
        folder = set_up_target(name, lambda what: status.update(f"{name}: {what}"))
    Console().print(f"{name} is ready, in {folder}.", soft_wrap=True)


@target_app.command("program")
def program_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write it.")] = Path("qil_device.pyz"),
) -> None:
    """Write the program for devices as one file, to copy to a device with Python, numpy and onnxruntime.

    On the device: python qil_device.pyz MODEL.onnx MODEL.golden.npz > report.json
    """
    from qil_deploy.runtime_tests.device_program import write_device_program
    from qil_deploy.terminal import Console

    write_device_program(output)
    Console().print(f"{output} is written.", soft_wrap=True)
