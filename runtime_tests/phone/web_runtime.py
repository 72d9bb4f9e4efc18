"""ONNX Runtime Web, the build for browsers: three files of its npm package, at one tested version.

Its folder is next to those of the other targets, and is complete or does not exist:

    FILES           what the page loads
    about.json      written last: {"version": ...}
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from qil_deploy.errors import TargetError
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.runtime_tests.targets.install_folder import ABOUT, targets_folder

VERSION: Final = "1.30.0"
FILES: Mapping[str, str] = MappingProxyType(
    {
        "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
        "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    }
)
"""Names of the files, in the package's folder `dist`, and their SHA-256."""

_TIMEOUT = 600.0
_LARGEST_FILE = 100 * 2**20


def runtime_folder() -> Path:
    """Return the folder of the runtime."""
    return targets_folder() / "wasm"


def runtime_state() -> str | None:
    """Return None if ONNX Runtime Web is set up, else the reason, as a sentence."""
    folder = runtime_folder()
    anew = f"remove {folder} and set it up again."
    if not (folder / ABOUT).is_file():
        return "it is not set up; run: python -m qil_deploy target setup wasm"
    try:
        version = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / ABOUT} is damaged ({error}); {anew}"
    if version != VERSION:
        return f"it is set up with ONNX Runtime Web {version}, and {VERSION} is needed; {anew}"
    for name in FILES:
        if not (folder / name).is_file():
            return f"{folder / name} is gone; {anew}"
    return None


def runtime_files() -> dict[str, Path]:
    """Return the runtime's files by the names that the page requests.

    Raises:
        TargetError: it is not set up.
    """
    reason = runtime_state()
    if reason is not None:
        raise TargetError(f"ONNX Runtime Web cannot be used: {reason}")
    return {name: runtime_folder() / name for name in FILES}


def set_up_runtime(say: Callable[[str], None], try_it: Callable[[Mapping[str, Path]], None]) -> Path:
    """Fetch ONNX Runtime Web with npm, as configured here, and try it; return its folder.

    Args:
        say: called with what is being done.
        try_it: called with the files before they are put in their place; raises if they do not work.

    Raises:
        TargetError: it is there already, there is no npm, or a step failed. Nothing is left behind then.
        OutputError: the folder cannot be written.
    """
    folder = runtime_folder()
    if folder.exists():
        raise TargetError(f"wasm is set up already, in {folder}; remove that folder to set it up anew.")
    npm = shutil.which("npm")
    if npm is None:
        raise TargetError("setting up wasm needs npm, which comes with Node.js; this machine has none on its PATH.")
    ensure_writable(folder.parent / ABOUT)
    try:
        with tempfile.TemporaryDirectory(prefix=".wasm-", dir=folder.parent) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            say(f"onnxruntime-web {VERSION}, from npm")
            _unpack(_download(npm, Path(scratch)), built)
            say("a trial")
            try_it({name: built / name for name in FILES})
            write_text(built / ABOUT, json.dumps({"version": VERSION}, indent=2) + "\n")
            built.rename(folder)
    except OSError as error:
        raise TargetError(f"setting up wasm failed: {error}.") from error
    return folder


def _download(npm: str, folder: Path) -> Path:
    """Return the package, whose digest npm has checked against the registry's."""
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--ignore-scripts", "--pack-destination", "."]
    try:
        done = subprocess.run(  # noqa: S603 - npm of this machine, without a shell
            command,
            cwd=folder,
            env=os.environ | {"npm_config_update_notifier": "false"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"downloading onnxruntime-web failed: {error}.") from error
    packages = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(packages) != 1:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise TargetError(f"npm pack failed with exit code {done.returncode}: {last or 'no message'}.")
    return packages[0]


def _unpack(package: Path, folder: Path) -> None:
    """Unpack the required files by name, and check their digests."""
    try:
        with tarfile.open(package) as archive:
            for name in FILES:
                source = archive.extractfile(f"package/dist/{name}")
                content = b"" if source is None else source.read(_LARGEST_FILE)
                _check_digest(name, content)
                (folder / name).write_bytes(content)
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise TargetError(f"the npm package onnxruntime-web {VERSION} is damaged: {error}.") from error


def _check_digest(name: str, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != FILES[name]:
        raise TargetError(
            f"{name} of the npm package onnxruntime-web {VERSION} has SHA-256 {found}, not {FILES[name]}; "
            "it is not the file that was tried."
        )
