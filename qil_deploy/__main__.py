"""`python -m qil_deploy` and `qil-deploy`: the command line, from its first moment on."""

from __future__ import annotations

import sys

from qil_deploy.interrupts import INTERRUPTED, end_at_interrupts, handle_interrupts


def start(program: str | None = None) -> None:
    """Run the command line and exit.

    Args:
        program: the one command to run with all arguments; None where the first argument names it.
    """
    handle_interrupts()  # before slow imports
    from qil_deploy.slow_imports import loading

    try:
        with loading():
            from qil_deploy.commands import main
        main(program=program)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("qil_deploy"):
            raise
        package = error.name.partition(".")[0]
        sys.stderr.write(f"Error: the package {package!r} is missing; install it with: pip install qil-deploy.\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        end_at_interrupts()


if __name__ == "__main__":
    start()
