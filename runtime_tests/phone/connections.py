"""Connections to the page's server: their maximum number, which one yields to newcomers, and their time limits.

A connection is *reading* until a request is there as a whole, *answering* until its answer is sent, and *idle* between
two requests. One more than `MOST` takes the place of another: of one that is reading, else of an idle one, else of one
that is answering; among these, of the address that holds the most, and there of the one that has been at it for
longest. So whoever opens many connections and says nothing, or a byte now and then, pushes out his own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

MOST: Final = 32
# Seconds: for the head of a request; for a body or an answer, and bytes per second beyond that; between two requests.
HEAD_SECONDS: Final = 15.0
BODY_SECONDS: Final = 30.0
SLOWEST: Final = 16 * 1024
IDLE_SECONDS: Final = 60.0


class Stage(IntEnum):
    """Progress of a connection; lower stages yield first."""

    READING = 0
    IDLE = 1
    ANSWERING = 2


class BoundedConnection(H11Protocol):
    """A connection of uvicorn's that is closed at its deadline, or when another one needs its place."""

    _step: object = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        """Accept the connection, closing another one if there are too many."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._keep_deadline()
        others = [each for each in open_connections(self.server_state) if each is not self]
        if len(others) >= MOST:
            choose_to_end(others).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Continue reading."""
        super().data_received(data)
        self._keep_deadline()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._keep_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    @property
    def stage(self) -> Stage:
        """Present progress."""
        if self.transport.get_write_buffer_size() or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            return Stage.ANSWERING
        waits = self.conn.their_state is h11.IDLE and self._answered is not None and not self.conn.trailing_data[0]
        return Stage.IDLE if waits else Stage.READING

    @property
    def _answered(self) -> bool | None:
        """Whether the last request was answered completely; None before the first."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None else cycle.response_complete

    def _keep_deadline(self) -> None:
        """Set a new deadline if the connection has reached a new stage; received bytes alone do not extend it."""
        step = (self.stage, self.cycle, self._answered)
        if step == self._step or self.transport.is_closing():
            return
        self._step, self.since = step, self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._seconds(), self.transport.abort)

    def _seconds(self) -> float:
        """Return the time limit of the current step."""
        if self.stage is Stage.READING:
            return HEAD_SECONDS if self.conn.their_state is h11.IDLE else BODY_SECONDS + self._body_length() / SLOWEST
        if self._answered:
            return IDLE_SECONDS + self.transport.get_write_buffer_size() / SLOWEST
        return BODY_SECONDS

    def _body_length(self) -> int:
        return int(dict(self.headers).get(b"content-length", b"0"))  # digits, which h11 has checked


def open_connections(state: ServerState) -> list[BoundedConnection]:
    """Return the connections of a server that are not closing."""
    known = [each for each in state.connections if isinstance(each, BoundedConnection)]
    return [each for each in known if not each.transport.is_closing()]


def choose_to_end(connections: Sequence[BoundedConnection]) -> BoundedConnection:
    """Return the connection that yields."""
    held = Counter(each.address for each in connections)
    return min(connections, key=lambda each: (each.stage, -held[each.address], each.since))
