"""Read and write `RUN/metrics.jsonl`: one line per epoch, in the order in which epochs ended.

A run that is killed may leave the last line cut off; the next start removes it. Any other damaged line is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qil_deploy.errors import DataError
from qil_deploy.files import write_text
from qil_deploy.untrusted_text import excerpt

METRICS_NAME = "metrics.jsonl"
_LARGEST_FILE = 64 << 20  # of a few hundred thousand epochs


@dataclass(frozen=True, kw_only=True)
class EpochLine:
    """One line of `metrics.jsonl`; accuracies in percent, None where there is no finite figure.

    `oscillating_weights` and `frozen_weights` are shares in [0, 1], None in phases that do not count them.
    """

    phase: str
    epoch: int
    loss: float | None
    train_accuracy: float | None
    test_accuracy: float | None
    oscillating_weights: float | None = None
    frozen_weights: float | None = None


def append_epoch(folder: Path, entry: dict[str, Any]) -> None:
    """Add the line of an epoch that has just ended."""
    with (folder / METRICS_NAME).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def read_epochs(folder: Path) -> tuple[EpochLine, ...]:
    """Read the epochs of a run.

    Raises:
        DataError: a line is damaged.
    """
    path = folder / METRICS_NAME
    return tuple(_epoch_line(path, number, line) for number, line in enumerate(_lines(path), 1))


def mend_last_line(folder: Path) -> None:
    """Complete or remove a last line that was cut off when an earlier start was killed, and check all others.

    Raises:
        DataError: another line is damaged.
    """
    path = folder / METRICS_NAME
    lines = _lines(path)
    cut = bool(lines) and not path.read_bytes().endswith(b"\n")
    for number, line in enumerate(lines[:-1] if cut else lines, 1):
        _epoch_line(path, number, line)
    if cut:
        whole = True
        try:
            _epoch_line(path, len(lines), lines[-1])
        except DataError:
            whole = False
        _write(path, lines if whole else lines[:-1])


def drop_epochs(folder: Path, phase: str, epoch: int) -> None:
    """Remove the lines of a phase from `epoch` on, which will be trained again.

    Raises:
        DataError: a line is damaged.
    """
    path = folder / METRICS_NAME
    lines = _lines(path)
    entries = [_epoch_line(path, number, line) for number, line in enumerate(lines, 1)]
    kept = [line for line, entry in zip(lines, entries, strict=True) if entry.phase != phase or entry.epoch < epoch]
    if len(kept) < len(lines):
        _write(path, kept)


def _lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{path} is no file of one line per epoch; move it away.")
    return path.read_bytes().splitlines()


def _write(path: Path, lines: list[bytes]) -> None:
    write_text(path, "".join(f"{line.decode('utf-8')}\n" for line in lines))


def _epoch_line(path: Path, number: int, line: bytes) -> EpochLine:
    try:
        entry = json.loads(line.decode("utf-8"))
        if not isinstance(entry, dict):
            raise TypeError("it is no JSON object")
        figures = {name: _number(entry, name) for name in ("loss", "train_accuracy", "test_accuracy")}
        figures |= {name: _number(entry, name) for name in ("oscillating_weights", "frozen_weights") if name in entry}
        phase, epoch = entry["phase"], entry["epoch"]
        if not isinstance(phase, str) or type(epoch) is not int or not 0 <= epoch < 2**53:
            raise ValueError(f"phase {excerpt(repr(phase), 40)} and epoch {excerpt(repr(epoch), 40)}")
        return EpochLine(phase=phase, epoch=epoch, **figures)
    except KeyError as error:
        raise DataError(f"line {number} of {path} is damaged (it has no {error}); remove it.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"line {number} of {path} is damaged ({excerpt(str(error))}); remove it.") from error


def _number(entry: dict[str, Any], name: str) -> float | None:
    """Return a figure; None where it is infinite or not a number, as after a run that diverged."""
    value = entry[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {excerpt(repr(value), 40)}")
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
