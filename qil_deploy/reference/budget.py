"""Budget for reading and running a file: bytes held at a time, and elementary operations.

A file of a few kB can ask for terabytes, by a constant that is expanded, a map that is resized or a batch that is huge,
and for years of work, by any of these a thousand times. So everything that the reference computes is paid for before it
is computed, out of one budget: constants out of the file's, and what one block of images takes out of what is left.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

from qil_deploy.errors import ConfigError

LIMIT_VARIABLE: Final = "QIL_DEPLOY_MEMORY_GIB"
_GIB: Final = 2**30
_DEFAULT_GIB: Final = 0.75
# For each byte of the file: weights of 2 bits become int8, and are kept before and after each operator on their way.
_PER_FILE_BYTE: Final = 32
# For each GiB; some 12 times VGG-16 on an image of 224x224.
_OPERATIONS: Final = 2**37 * 4 / 3


class BudgetError(ValueError):
    """A computation that exceeds the budget."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a computation.

    Attributes:
        bytes: of the result.
        working: bytes besides that, while it is computed.
        operations: products and additions; an operation of another kind counts as several.
    """

    bytes: int
    working: int = 0
    operations: int = 0


class Budget:
    """Bytes that may be held and operations that may be made.

    Attributes:
        peak: the most bytes that were held at a time.
        made: operations that were made.
    """

    def __init__(self, limit: int, operations: float) -> None:
        self.peak = 0
        self.made = 0
        self._limit = limit
        self._held = 0
        self._operations = operations

    @classmethod
    def of_file(cls, file_bytes: int) -> Budget:
        """Return the budget of a file.

        Raises:
            ConfigError: `QIL_DEPLOY_MEMORY_GIB` is no positive number.
        """
        gib = _memory_gib()
        return cls(int(gib * _GIB) + _PER_FILE_BYTE * file_bytes, gib * _OPERATIONS)

    def rest(self) -> Budget:
        """Return a separate budget of the bytes that are not held, and as many operations."""
        return Budget(self.left, self._operations)

    @property
    def left(self) -> int:
        """Bytes that are not held."""
        return self._limit - self._held

    def pay(self, cost: Cost) -> None:
        """Hold the bytes of a result that is about to be computed.

        Raises:
            BudgetError: bytes or operations exceed what is left.
        """
        wanted = self._held + cost.bytes + cost.working
        if wanted > self._limit:
            raise BudgetError(
                f"it takes {_amount(cost.bytes + cost.working)}, which, with what is already held, exceeds the "
                f"{_amount(self._limit)} that may be held at a time (set {LIMIT_VARIABLE} if the file is right)"
            )
        self.made += cost.operations
        if self.made > self._operations:
            raise BudgetError(
                f"with it, {_about(self.made)} operations would be made, and no more than {_about(self._operations)} "
                f"may be (set {LIMIT_VARIABLE} if the file is right)"
            )
        self.peak = max(self.peak, wanted)
        self._held += cost.bytes

    def give_back(self, count: int) -> None:
        """Release some bytes."""
        self._held -= count


def _memory_gib() -> float:
    named = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gib = float(named) if named else _DEFAULT_GIB
    except ValueError:
        gib = math.nan
    if not 0 < gib < _GIB:
        raise ConfigError(f"{LIMIT_VARIABLE} is {named!r}; it must be a positive number of GiB, such as 4.")
    return gib


def _amount(count: int) -> str:
    return f"{count / _GIB:.2g} GiB" if count < 1024 * _GIB else f"{_about(count)} bytes"


def _about(count: float) -> str:
    return f"{min(count, 1e99):.2g}"
