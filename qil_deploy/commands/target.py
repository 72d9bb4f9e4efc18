"""`target`: what other machines a model can be run as here, and setting them up."""

from __future__ import annotations

from typing import Annotated

import typer

target_app = typer.Typer(help="Other instruction sets and devices to verify models on.", no_args_is_help=True)


@target_app.command("list")
def list_command() -> None:
    """List the targets, and what each still needs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from qil_deploy.runtime_tests.targets import DEVICE_FORMS, TARGETS, find_target, target_state

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("target", "what it is", "state"):
        table.add_column(heading, no_wrap=heading == "target")
    rows = [(target.name, target) for target in TARGETS.values()]
    rows += [(form, find_target(example)) for form, example in DEVICE_FORMS.items()]
    for name, target in rows:
        reason = target_state(target)
        table.add_row(name, target.about, "ready" if reason is None else reason)
    Console(markup=False).print(table)


@target_app.command("setup")
def setup_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="haswell, arm64 (with all of its processors) or wasm.")],
) -> None:
    """Set up a target: haswell and arm64 with this machine's apt and pip (some 200 MB), wasm with its npm (14 MB).

    Nothing is installed, and no root is needed.
    """
    from rich.console import Console

    from qil_deploy.runtime_tests.targets import set_up_target

    console = Console(stderr=True, markup=False)
    with console.status("") as status:
        folder = set_up_target(name, lambda what: status.update(f"{name}: {what}"))
    Console(markup=False).print(f"{name} is ready, in {folder}.", soft_wrap=True)
