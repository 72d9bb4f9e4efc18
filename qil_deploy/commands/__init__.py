"""The command line: `python -m qil_deploy COMMAND`. A command's modules are loaded when it runs.

Exit codes: 0 done and true, 1 a verification found a difference, 2 wrong use; 130 interrupted (Ctrl-C), 141 nobody
reads the output any more (`| head`), as of any program that a signal ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.main import get_command

from qil_deploy import __version__
from qil_deploy.errors import QilDeployError
from qil_deploy.terminal import Console, print_error

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
    help="Quantize CNNs to 2 to 4 bits, export them as integer-only ONNX, and verify that they run as trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"qil-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, expose_value=False, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command line as a whole."""


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


_BROWSER_PACKAGES = ("h11", "playwright", "starlette", "uvicorn")  # of the extra `browser`
# Raised for wrong options and arguments: a class of click's, which newer versions of typer contain.
_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> NoReturn:
    """Run the command line and exit; wrong use and errors of ours or of the system become one sentence, exit code 2.

    Args:
        arguments: by default those of this process.
        program: the one command that they are for; None where the first of them names it.
    """
    _print_any_name()
    try:
        sys.exit(_run(arguments, program))
    except SystemExit as ending:
        # rich and typer exit with 1 if the reader of a pipe is gone, which would mean here that something differs.
        if isinstance(ending.__context__, BrokenPipeError):
            _discard_output()
            sys.exit(141)
        raise
    except _UsageError as error:
        _refuse_use(error)
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
        package = error.name.partition(".")[0]
        extras = "browser" if package in _BROWSER_PACKAGES else "train,export"
        _fail(f"this command needs the package {package!r}; install it with: pip install 'qil-deploy[{extras}]'.")


def _run(arguments: Sequence[str] | None, program: str | None) -> int:
    """Return the exit code."""
    command = get_command(app)
    if program is not None:
        # A command line of its own, so that its usage is what has to be typed; it knows `--version` as well.
        options = [option for option in command.params if option.name == "version"]
        command = command.commands[program]  # type: ignore[attr-defined] # a group, since several are registered
        command.params += options
    code = command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    return code if isinstance(code, int) else 0


def _refuse_use(error: Any) -> NoReturn:  # noqa: ANN401 - the class is click's or typer's
    """Report an error in the options or arguments, and point to their help."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        sys.exit(error.exit_code)
    words = error.format_message().replace("Value error, ", "")  # a prefix of pydantic's
    message = " ".join(words.split()).rstrip(".")
    ending = "" if message.endswith("?") else "."
    program = "" if error.ctx is None else f"{error.ctx.command_path} "
    _fail(f"{message}{ending} See: {program}--help.")


def _print_any_name() -> None:
    """Let names that cannot be encoded be printed anyway: file names need not be UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # it cannot be written; the first line will say so
                stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Discard output that cannot be written: Python would try again at exit, and complain."""
    if sys.stdout is None:  # closed
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(sentence: str) -> NoReturn:
    print_error(sentence)
    sys.exit(2)
