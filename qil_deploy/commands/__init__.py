"""The command line: `python -m qil_deploy COMMAND`. What a command needs is loaded when it runs.

Exit codes: 0 done and true, 1 a verification found a difference, 2 wrong use; 130 interrupted (Ctrl-C), 141 nobody
reads the output any more (`| head`), as of any program that a signal ends.
"""

from __future__ import annotations

import contextlib
import io
import os
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
from .report import report_command
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
app.command("report")(report_command)
app.command("demo")(demo_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; an error of ours or of the system becomes one sentence and exit code 2."""
    _print_any_name()
    try:
        app(args=list(arguments) if arguments is not None else None)
    except SystemExit as ending:
        # rich and typer end with 1 where the reader of a pipe has gone, which here would say that something differs.
        if isinstance(ending.__context__, BrokenPipeError):
            _discard_output()
            sys.exit(141)
        raise
    except OSError as error:
        _discard_output()
        where = "the output" if error.filename is None else str(error.filename)
        _fail(f"{where} cannot be read or written: {error.strerror or error}.")
    except MemoryError as error:
        _fail(f"there is not enough memory: {str(error) or 'an array is too large'}.")
    except QilDeployError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("qil_deploy"):
            raise
        _fail(
            f"this command needs the package {error.name!r}; install it with: pip install 'qil-deploy[train,export]'."
        )


def _print_any_name() -> None:
    """Let names that cannot be encoded be printed all the same: file names need not be UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # it cannot be written at all, which the first line will tell
                stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let what cannot be written go nowhere: Python would try it again when it ends, and complain."""
    if sys.stdout is None:  # closed
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(sentence: str) -> NoReturn:
    # A Text, not a string: file names may hold brackets, which rich would read as markup.
    Console(stderr=True).print(Text.assemble(("Error:", "red"), f" {sentence}"), soft_wrap=True)
    sys.exit(2)
