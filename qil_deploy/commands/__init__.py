"""The command line: `python -m qil_deploy COMMAND`. What a command needs is loaded when it runs.

Exit codes: 0 done and true, 1 a verification found a difference, 2 wrong use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from qil_deploy.errors import QilDeployError

from .bench import bench_command
from .demo import demo_command
from .doctor import doctor_command
from .export import export_command
from .inspect import inspect_command
from .phone import phone_command
from .sensitivity import sensitivity_command
from .target import target_app
from .train import train_command
from .verify import verify_command

app = typer.Typer(
    name="qil-deploy",
    help="Train CNNs to 2 to 4 bits, export them as integer-only ONNX, and prove that they run as trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("train")(train_command)
app.command("sensitivity")(sensitivity_command)
app.command("export")(export_command)
app.command("verify")(verify_command)
app.command("bench")(bench_command)
app.command("inspect")(inspect_command)
app.command("doctor")(doctor_command)
app.add_typer(target_app, name="target")
app.command("phone")(phone_command)
app.command("demo")(demo_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; an error of ours becomes one sentence and exit code 2."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except QilDeployError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("qil_deploy"):
            raise
        _fail(
            f"this command needs the package {error.name!r}; install it with: pip install 'qil-deploy[train,export]'."
        )


def _fail(sentence: str) -> NoReturn:
    # A Text, not a string: file names may hold brackets, which rich would read as markup.
    Console(stderr=True).print(Text.assemble(("Error:", "red"), f" {sentence}"), soft_wrap=True)
    sys.exit(2)
