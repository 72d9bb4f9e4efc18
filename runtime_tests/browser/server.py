"""A small HTTP server for one page, its worker and one result.

What it serves is a table, made before it starts: no path of a request ever becomes a file's name. All of it stands
below a token drawn at random, so that only who was given the address has it. Posts are bounded; one result is taken.
Requests that name another host are refused, since they come from a page that had its own name point here. A request has
to be whole by a deadline, and who opens connections and sends little keeps nobody out (`connections`).
"""

from __future__ import annotations

import io
import ipaddress
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from qil_deploy.errors import QilDeployError, TargetError

from .connections import Connections, Stage, TimedReader

HEADERS: Final = {
    # With the first two a page counts as isolated, and only then have browsers threads that share memory.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "connect-src 'self'; worker-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_WORDS = 2000
_CONNECTIONS = 32
# Seconds: between two requests; for the head of one; for a body or an answer, and bytes per second beyond that.
_SILENCE = 60.0
_HEAD = 15.0
_BODY = 30.0
_SLOWEST = 16 * 1024
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What a GET returns: a type and the function that makes the bytes."""

    content_type: str
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the page did: asked for a resource, told progress, failed, or sent a result that was taken."""

    kind: Literal["asked", "progress", "failure", "result"]
    text: str = ""
    result: Any = None


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is served.

    Attributes:
        resources: by name, below the token; "" is the page itself.
        accept: turns a posted result into what it means, or raises a `QilDeployError`, which the page is told.
        largest_result: bytes that a posted result may have.
    """

    resources: Mapping[str, Resource]
    accept: Callable[[bytes], object]
    largest_result: int


@dataclass(kw_only=True)
class _State:
    """What the threads of the server share."""

    service: Service
    prefix: str
    hosts: frozenset[str]
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: Connections = field(default_factory=lambda: Connections(_CONNECTIONS))
    taken: bool = False


class PageServer:
    """Serves one page from the start to the end of a `with` block.

    Args:
        service: what is served.
        host: address to listen on; loopback unless others shall reach it.
        port: 0 for any that is free.
        names: further names that this machine is called by, as a request's Host header may have them.

    Raises:
        TargetError: the address cannot be listened on.
    """

    def __init__(
        self, service: Service, *, host: str = "127.0.0.1", port: int = 0, names: tuple[str, ...] = ()
    ) -> None:
        state = _State(service=service, prefix=f"/{secrets.token_urlsafe(16)}/", hosts=frozenset())
        try:
            self._server = _Server((host, port), state)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TargetError(
                f"cannot serve on {host}, port {port}: {reason}. Choose another --port or --host."
            ) from error
        self.port = int(self._server.server_address[1])
        own = {host, *names, *(_LOOPBACK if _is_loopback(host) or _is_any(host) else ())}
        state.hosts = frozenset(f"{name}:{self.port}" for name in own) | (own if self.port == 80 else frozenset())
        self._state = state
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, name: str) -> str:
        """Return the page's address, with this machine called `name`."""
        return f"http://{name}:{self.port}{self._state.prefix}"

    def next_event(self, timeout: float) -> Event | None:
        """Return what the page did next, or None if it did nothing for `timeout` seconds."""
        try:
            return self._state.events.get(timeout=timeout)
        except queue.Empty:
            return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], state: _State) -> None:
        self.state = state
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server what this machine is called."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as socketserver has it
        """Serve a connection in a thread of its own."""
        self.state.connections.admit(request, client_address[0])
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - likewise
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.state.connections.leave(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - likewise
        """Say nothing: a browser that hangs up is no error of this program."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "qil-deploy"
    sys_version = ""

    def setup(self) -> None:
        """Read what comes in through a clock."""
        super().setup()
        self.rfile.close()
        self._clock = TimedReader(self.connection)
        self.rfile = self._input = io.BufferedReader(self._clock)

    def handle_one_request(self) -> None:
        """Wait for a request, and serve it if its head is whole in time."""
        try:
            self._clock.allow(_SILENCE)
            self._input.peek(1)
        except TimeoutError:
            self.close_connection = True
            return
        self._clock.allow(_HEAD)
        self._state.connections.enter(self.connection, Stage.READING)
        super().handle_one_request()
        self._state.connections.enter(self.connection, Stage.IDLE)

    def do_GET(self) -> None:
        """Serve a resource of the table."""
        name = self._name()
        if name is None:
            return
        resource = self._state.service.resources.get(name)
        if resource is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
            return
        self._state.events.put(Event(kind="asked", text=name))
        self._send(HTTPStatus.OK, resource.content_type, resource.read())

    def do_POST(self) -> None:
        """Take progress, a failure, or the result."""
        name = self._name()
        if name is None:
            return
        if name not in ("progress", "failure", "result"):
            self._refuse(HTTPStatus.NOT_FOUND, "Nothing is taken here.")
            return
        content = self._content(self._state.service.largest_result if name == "result" else MAX_WORDS)
        if content is None:
            return
        if name == "result":
            self._take(content)
            return
        words = "".join(c for c in content.decode(errors="replace") if c.isprintable())
        self._state.events.put(Event(kind="progress" if name == "progress" else "failure", text=words))
        self._send(HTTPStatus.OK, "text/plain; charset=utf-8", b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server calls it
        """Write no log."""

    @property
    def _state(self) -> _State:
        return self.server.state

    def _take(self, content: bytes) -> None:
        """Take a result, the first that is right."""
        with self._state.lock:
            if self._state.taken:
                self._refuse(HTTPStatus.CONFLICT, "A result was sent already; start the command again for another.")
                return
            try:
                result = self._state.service.accept(content)
            except QilDeployError as error:
                self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"The result was refused: {error}")
                return
            self._state.taken = True
        self._send(HTTPStatus.OK, "text/plain; charset=utf-8", b"")
        self._state.events.put(Event(kind="result", result=result))

    def _name(self) -> str | None:
        """Return what stands behind the token, or refuse the request."""
        if self.headers.get("Host", "").lower() not in self._state.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "This is not the host that you asked for.")
            return None
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in self._state.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "Requests of other pages are refused.")
            return None
        prefix = self._state.prefix
        given = self.path[: len(prefix)].encode(errors="replace")
        if not secrets.compare_digest(given, prefix.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here; use the whole address that the command printed.")
            return None
        return self.path[len(prefix) :]

    def _content(self, largest: int) -> bytes | None:
        """Return the body of a post, or refuse it."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "A post has to say its length.")
            return None
        if len(length) > 12 or int(length) > largest:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A post may have {largest} bytes here.")
            return None
        self._clock.allow(_seconds_for(int(length)))
        content = self.rfile.read(int(length))
        return content if len(content) == int(length) else None

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        # What was not read of this request would be taken for the next one.
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", sentence.encode())

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self._state.connections.enter(self.connection, Stage.ANSWERING)
        self.connection.settimeout(_seconds_for(len(content)))
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _seconds_for(length: int) -> float:
    """Return how long a body or an answer of so many bytes may take."""
    return _BODY + length / _SLOWEST


def _is_loopback(host: str) -> bool:
    return host == "localhost" or _address_is(host, "is_loopback")


def _is_any(host: str) -> bool:
    return _address_is(host, "is_unspecified")


def _address_is(host: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return False
