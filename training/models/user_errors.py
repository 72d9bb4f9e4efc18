"""Errors from the user's code, in one clause: the exception, and the line of the user's that raised it."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import qil_deploy
from qil_deploy.untrusted_text import excerpt

_NOT_THE_USERS = (Path(qil_deploy.__file__).parent, Path(sysconfig.get_path("stdlib")))


def describe_error(error: BaseException) -> str:
    """Return type and message of an error, and the innermost line of code that is neither ours nor installed."""
    text = excerpt(f"{type(error).__name__}: {error}".rstrip(": ."), 300)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} [{Path(error.filename).name}, line {error.lineno}]"
    return f"{text} [{Path(frames[-1].filename).name}, line {frames[-1].lineno}]" if frames else text


def _is_users(filename: str) -> bool:
    path = Path(filename)
    return (
        path.suffix == ".py"
        and not any(path.is_relative_to(folder) for folder in _NOT_THE_USERS)
        and not {"site-packages", "dist-packages"} & set(path.parts)
    )
