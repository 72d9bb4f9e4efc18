"""Run a program until it ends or whoever started this does, be it by a kill: then everything in this group is killed.

    python lifeline.py PROGRAM ARGUMENTS...

Standard input is the line: nothing is written to it, and its end is the end of who holds it. Exit code: the program's;
128 and the signal's number if a signal ended it; 127 if it cannot be started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Start the program and wait; return the exit code."""
    try:
        program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - what our own caller names
    except OSError as error:
        sys.stderr.write(f"cannot start {sys.argv[1]}: {error.strerror or error}\n")
        return 127

    def follow() -> None:
        while os.read(0, 1):
            pass
        if sys.platform == "win32":
            program.kill()
        else:
            os.killpg(0, signal.SIGKILL)

    # Whoever asks this group to end waits for this process, and means the program.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=follow, daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
