"""The open connections of a server: a bound on how many, who makes room for newcomers, and how long each may take.

A connection is *reading* until a request is there as a whole, *answering* until its answer is sent, and *idle* between
two requests. Where there are as many as may be, a newcomer takes a place: of one that is reading, else of an idle one,
else of one that is answering; among these, of the address that holds the most, and there of the one that has been at it
for longest. So whoever opens many connections and says nothing, or a byte now and then, pushes out his own.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum


class Stage(IntEnum):
    """How far a connection is; a lower one makes room first."""

    READING = 0
    IDLE = 1
    ANSWERING = 2


@dataclass(kw_only=True)
class _Open:
    connection: socket.socket
    address: str
    stage: Stage = Stage.READING
    since: float = field(default_factory=time.monotonic)


class Connections:
    """The connections of a server, each served by a thread of its own.

    Args:
        most: how many may be open.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[socket.socket, _Open] = {}
        self._lock = threading.Lock()

    def admit(self, connection: socket.socket, address: str) -> None:
        """Take a connection in, ending another one where there are too many."""
        with self._lock:
            if len(self._open) >= self._most:
                held = Counter(known.address for known in self._open.values())
                last = min(self._open.values(), key=lambda known: (known.stage, -held[known.address], known.since))
                del self._open[last.connection]
                with contextlib.suppress(OSError):  # it has ended by itself
                    last.connection.shutdown(socket.SHUT_RDWR)
            self._open[connection] = _Open(connection=connection, address=address)

    def enter(self, connection: socket.socket, stage: Stage) -> None:
        """Note how far a connection is."""
        with self._lock:
            known = self._open.get(connection)
            if known is not None:
                known.stage, known.since = stage, time.monotonic()

    def leave(self, connection: socket.socket) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._open.pop(connection, None)


class TimedReader(io.RawIOBase):
    """What a connection sends, up to a moment: however slowly the bytes come, `TimeoutError` is raised then."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._end = time.monotonic()

    def allow(self, seconds: float) -> None:
        """Let everything that is read from now on take so long together."""
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        """Tell `io.BufferedReader` that this can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # as `io.BufferedReader` calls it
        """Wait for some bytes.

        Raises:
            TimeoutError: the time is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
