"""The command line, called in this process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from qil_deploy.commands import main


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Output and exit code of a command.

    Attributes:
        code: the exit code.
        out: standard output with its lines joined, for where they break means nothing.
        error: standard error.
        shown: standard output as it stands.
    """

    code: object
    out: str
    error: str
    shown: str


def call_command(*arguments: object) -> Outcome:
    """Run the command line; errors that are not ours pass through."""
    out, error = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = ending.code
    shown = out.getvalue()
    return Outcome(code=code, out=" ".join(shown.split()), error=error.getvalue(), shown=shown)


def refuse_command(*arguments: object, printed: bool = False) -> str:
    """Run a command, require one sentence and exit code 2, and return the sentence.

    Args:
        arguments: of the command line.
        printed: whether something may have been printed before.
    """
    outcome = call_command(*arguments)
    assert outcome.code == 2, (outcome, arguments)
    assert printed or outcome.out == ""
    error = outcome.error.removeprefix("\n")  # a progress bar that nobody sees ends with a line of its own
    assert error.startswith("Error: "), outcome
    assert "Traceback" not in error
    sentence = error.removeprefix("Error: ").removesuffix("\n")
    assert "\n" not in sentence
    assert sentence.endswith("."), sentence
    return sentence
