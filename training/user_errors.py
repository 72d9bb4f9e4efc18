"""Errors out of code of the user's, in one clause: what was raised, and at which line of theirs."""

from __future__ import annotations

import traceback
from pathlib import Path

from qil_deploy.untrusted_text import excerpt

_OURS = Path(__file__).resolve().parents[1]


def describe_error(error: BaseException) -> str:
    """Return type and message of an error, and the innermost line of code that is neither ours nor installed."""
    text = excerpt(f"{type(error).__name__}: {error}".rstrip(": ."), 300)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} [{Path(error.filename).name}, line {error.lineno}]"
    return f"{text} [{Path(frames[-1].filename).name}, line {frames[-1].lineno}]" if frames else text


def _is_users(filename: str) -> bool:
    path = Path(filename)
    ours = path.is_relative_to(_OURS) or "qil_deploy" in path.parts
    return path.suffix == ".py" and not ours and not {"site-packages", "dist-packages"} & set(path.parts)
