"""Ctrl-C ends a command quietly, with exit code 130, at any moment.

Moments are counted in modules loaded and in functions called, not in seconds: a test means the same on a busy machine.
What Python does before the command's first line is Python's own.
"""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qil_deploy.interrupts import INTERRUPTED

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
MODEL = ZOO / "w2a2.onnx"
SECONDS = 300

# Runs `python -m MODULE ARGUMENTS` and interrupts it at the n-th event since it has begun; n = 0 never does, and says
# how many there are. SIGINT is as a terminal's shell leaves it, whatever started the tests.
CHILD = """
import atexit, runpy, signal, sys

kind, at, module, *arguments = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
count, begun = 0, False

def step(name, first):
    global count, begun
    begun = begun or name == first
    count += begun
    if begun and count == int(at):
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)

def on_audit(event, args):
    if event == "import":
        step(args[0], "qil_deploy.terminal")

def on_call(frame, event, _):
    if event == "call":
        step(frame.f_code.co_name, "_is_terminal")

if int(at) == 0:
    atexit.register(lambda: print("\\n", count, file=sys.__stderr__))
sys.argv = [module, *arguments]
if kind == "imports":
    sys.addaudithook(on_audit)
else:
    sys.setprofile(on_call)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def child(kind: str, at: int, command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", CHILD, kind, str(at), *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=SECONDS)


def interrupt_at_many_moments(kind: str, moments: int, command: Sequence[object], tmp_path: Path) -> None:
    whole = child(kind, 0, command)
    assert whole.returncode == 0, whole
    for path in tmp_path.iterdir():
        path.unlink()
    count = int(whole.stderr.split()[-1])
    assert count > 100
    for at in sorted({1, count, *random.Random(7).sample(range(1, count + 1), moments)}):
        done = child(kind, at, command)
        assert done.stderr.strip() == "", (at, count, done)
        # Once the outcome is printed, it stands.
        assert done.returncode == INTERRUPTED or (done.returncode == 0 and done.stdout == whole.stdout), (at, done)
        assert all(path.suffix == ".onnx" for path in tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["imports", "calls"])
def test_at_any_moment_of_a_short_command(kind: str, tmp_path: Path) -> None:
    interrupt_at_many_moments(kind, 12, ("qil_deploy", "inspect", MODEL), tmp_path)


@pytest.mark.slow
def test_at_any_moment_while_pytorch_is_loaded(tmp_path: Path) -> None:
    """Some of PyTorch's modules catch all exceptions while they import others."""
    command = ("qil_deploy.export", ZOO / "w2a2_frozen.safetensors", "-o", tmp_path / "model.onnx")
    interrupt_at_many_moments("imports", 8, command, tmp_path)


def start(
    *arguments: object, ignoring: bool = False, stderr: int = subprocess.PIPE, **variables: str
) -> subprocess.Popen[bytes]:
    """Start the command line with SIGINT as a shell sets it, for a foreground or a background job."""
    handler = signal.SIG_IGN if ignoring else signal.SIG_DFL

    def set_handler() -> None:
        signal.signal(signal.SIGINT, handler)

    return subprocess.Popen(
        [sys.executable, "-m", "qil_deploy", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        preexec_fn=set_handler,  # noqa: PLW1509 - what exec leaves as it is has to be set before it
        env=os.environ | variables,
    )


def test_a_word_is_shown_before_anything_is_loaded_and_then_a_quiet_end() -> None:
    """On a terminal; the interrupt comes when the message is shown, and only its erasure follows."""
    controller, terminal = pty.openpty()
    with start("inspect", MODEL, stderr=terminal, TERM="xterm") as process:
        shown = read_until(controller, b"loading ...")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=SECONDS)
    os.write(terminal, b"the end")
    shown += read_until(controller, b"the end")
    os.close(terminal)
    os.close(controller)
    assert process.returncode in (INTERRUPTED, 0)
    assert shown.startswith(b"loading ...\r\x1b[K")
    assert b"Traceback" not in shown


def read_until(controller: int, what: bytes) -> bytes:
    """Read a terminal's output until it contains a text."""
    shown = b""
    while what not in shown:
        shown += os.read(controller, 1024)
    return shown


@pytest.mark.parametrize("command", [("inspect",), ("verify", "--limit", "50")])
def test_a_job_in_the_background_is_not_interrupted(command: tuple[str, ...]) -> None:
    """A shell ignores SIGINT there, and Ctrl-C is meant for another process."""
    name, *options = command
    with start(name, MODEL, *options, ignoring=True) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                continue
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors.strip()) == (0, b"")
    assert out
