"""Programs that run with the C library's own settings for memory."""

from __future__ import annotations

import os
import subprocess
import sys

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def output_of(program: str, *arguments: str) -> str:
    """Run a program in a new Python, without settings for memory in its environment; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
