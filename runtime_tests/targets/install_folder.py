"""Folders that `target setup` makes: each exists complete and tried, or not at all.

A folder is built next to its place and renamed; its `about.json`, written last, says what a later start needs to know.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qil_deploy.errors import TargetError
from qil_deploy.files import ensure_writable

FOLDER_VARIABLE = "QIL_DEPLOY_TARGETS"
ABOUT = "about.json"
_COMMAND_TIMEOUT = 1800.0


def targets_folder() -> Path:
    """Return the folder of all targets: `QIL_DEPLOY_TARGETS`, or one in the user's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "qil_deploy" / "targets"


def read_about(folder: Path) -> dict[str, Any]:
    """Return a folder's description of itself.

    Raises:
        OSError, ValueError: it says nothing, or no JSON.
    """
    return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))


def folder_state(folder: Path, needed: Callable[[], Iterable[Path]]) -> str | None:
    """Return None if a folder is set up and has everything it needs, else the reason, as a sentence.

    Args:
        folder: named like what `target setup` calls it.
        needed: returns the files that have to be there; may raise OSError, ValueError, KeyError or TypeError where what
            the folder says about itself is damaged.
    """
    if not (folder / ABOUT).is_file():
        return f"it is not set up; run: python -m qil_deploy target setup {folder.name}"
    try:
        missing = next((path for path in needed() if not path.exists()), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / ABOUT} is damaged ({error}); remove {folder} and set it up again."
    return None if missing is None else f"{missing} is gone; remove {folder} and set it up again."


def check_installable(folder: Path, unable: str | None, tools: Sequence[str]) -> None:
    """Raise TargetError unless a folder can be set up here.

    Args:
        folder: named like what `target setup` calls it.
        unable: why this machine can never run it, or None.
        tools: programs of Debian that it takes.
    """
    name = folder.name
    if folder.exists():
        raise TargetError(f"{name} is set up already, in {folder}; remove that folder to set it up anew.")
    if unable is not None:
        raise TargetError(f"{name} cannot be set up here: {unable}")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise TargetError(
            f"setting up {name} needs {', '.join(missing)}, of Debian and the distributions made from it; this machine "
            "has none."
        )


def install(folder: Path, build: Callable[[Path, Path], None]) -> Path:
    """Build a folder, whole or not at all, and return it.

    Args:
        folder: its place.
        build: fills the folder that is its first argument, and may leave anything in the second.

    Raises:
        TargetError: it cannot be built.
        OutputError: its place cannot be written.
    """
    ensure_writable(folder.parent / ABOUT)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            build(built, Path(scratch))
            built.rename(folder)
    except OSError as error:
        raise TargetError(f"setting up {folder.name} failed: {error}.") from error
    return folder


def run_step(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    """Run a command on this machine.

    Raises:
        TargetError: it fails; says its last words.
    """
    try:
        done = subprocess.run(  # noqa: S603 - apt, dpkg and pip of this machine, without a shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_TIMEOUT,
            check=False,
            cwd=cwd,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{what} failed: {error}.") from error
    if done.returncode != 0:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise TargetError(f"{what} failed with exit code {done.returncode}: {last or 'no message'}.")


def unpack_debian(
    packages: Sequence[str], state: Path, folder: Path, *, architecture: str | None = None, dependencies: bool = True
) -> None:
    """Download packages with this machine's apt, install nothing, and unpack them into a folder.

    Args:
        packages: their names.
        state: a folder for apt's lists, its idea of what is installed, and downloads.
        folder: where they are unpacked.
        architecture: Debian's name of it; by default this machine's.
        dependencies: whether what they depend on comes with them.

    Raises:
        TargetError: a step failed.
    """
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    if architecture is not None:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    apt = ["apt-get", "-qq", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    for_it = "" if architecture is None else f" for {architecture}"
    run_step([*apt, "update"], f"updating the package lists{for_it}")
    what = f"downloading {' and '.join(packages)}{for_it}"
    if dependencies:
        run_step([*apt, "--yes", "--no-install-recommends", "--download-only", "install", *packages], what)
    else:
        run_step([*apt, "download", *packages], what, cwd=state / "archives")
    for package in sorted((state / "archives").glob("*.deb")):
        run_step(["dpkg-deb", "-x", str(package), str(folder)], f"unpacking {package.name}")
