"""A small HTTP server for one page, its worker and one result: a starlette application, run by uvicorn in a thread.

What it serves is a table, made before it starts: no path of a request ever becomes a file's name. All of it stands
below a token drawn at random, so that only those given the address have it. Posts are bounded; one result is taken.
Requests that name another host are refused, since they come from a page that had its own name point here. A request has
to be whole by a deadline, and clients that open connections and send little keep nobody out (`connections`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qil_deploy.errors import QilDeployError, TargetError

from .connections import IDLE_SECONDS, BoundedConnection, open_connections

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
PAGE: Final = Path(__file__).parent / "page"
MAX_WORDS: Final = 2000
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
_NOTHING_HERE = "There is nothing here; use the whole address that the command printed."
_GRACE = 2  # seconds for answers that are on their way when the server ends


Resource = bytes | Callable[[], bytes]
"""What a GET returns: bytes, or the function that makes them when they are asked for."""


def page_resources(page: str, runtime: Mapping[str, Path]) -> dict[str, Resource]:
    """Return the files of the folder `page`, each read on request, and those of ONNX Runtime Web.

    Args:
        page: file that is the page itself.
        runtime: paths, by the names that are asked for.
    """
    paths = {"": PAGE / page} | {path.name: path for path in PAGE.iterdir()} | dict(runtime)
    return {name: path.read_bytes for name, path in paths.items()}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Action of the page: a request for a resource, progress, a failure, or an accepted result."""

    kind: Literal["asked", "progress", "failure", "result"]
    text: str = ""
    result: Any = None


@dataclass(frozen=True, kw_only=True)
class Service:
    """Content of the server.

    Attributes:
        resources: by name, below the token; "" is the page itself.
        accept: turns a posted result into what it means, or raises a `QilDeployError`, which the page is told.
        largest_result: bytes that a posted result may have.
    """

    resources: Mapping[str, Resource]
    accept: Callable[[bytes], object]
    largest_result: int


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
        try:
            self._socket = socket.create_server((host, port), backlog=128)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TargetError(
                f"cannot serve on {host}, port {port}: {reason}. Choose another --port or --host."
            ) from error
        self.port = int(self._socket.getsockname()[1])
        self._service = service
        self._token = secrets.token_urlsafe(16)
        hosts = {host, *names, *(("127.0.0.1", "localhost") if _is_loopback_or_any(host) else ())}
        self._origins = {f"{name}:{self.port}".lower().removesuffix(":80") for name in hosts}
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._taken = False
        self._taking = asyncio.Lock()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._application(hosts),
                http=BoundedConnection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",  # a browser that hangs up is no error of this program
                proxy_headers=False,
                server_header=False,
                date_header=False,
                headers=list(HEADERS.items()),
                timeout_keep_alive=int(IDLE_SECONDS),
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    def url(self, name: str) -> str:
        """Return the page's address, with `name` as this machine's."""
        return f"http://{name}:{self.port}/{self._token}/"

    @property
    def connections(self) -> list[BoundedConnection]:
        """The open connections."""
        return open_connections(self._server.server_state)

    def next_event(self, timeout: float) -> Event | None:
        """Return the page's next action, or None if there is none for `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _application(self, hosts: set[str]) -> Starlette:
        path = "/{token}/{name:path}"
        application = Starlette(
            routes=[Route(path, self._give, methods=["GET"]), Route(path, self._take, methods=["POST"])],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=sorted(hosts), www_redirect=False)],
            exception_handlers={404: lambda *_: Response(_NOTHING_HERE, 404)},
        )
        application.router.redirect_slashes = False
        return application

    async def _give(self, request: Request) -> Response:
        """Serve a resource of the table."""
        name = self._name(request)
        resource = self._service.resources.get(name)
        if resource is None:
            raise HTTPException(404)
        self._events.put(Event(kind="asked", text=name))
        content = resource if isinstance(resource, bytes) else await run_in_threadpool(resource)
        kind = _TYPES.get(PurePosixPath(name or "page.html").suffix, "application/octet-stream")
        return Response(content, headers={"Content-Type": kind})

    async def _take(self, request: Request) -> Response:
        """Receive progress, a failure, or the result."""
        name = self._name(request)
        if name not in ("progress", "failure", "result"):
            raise HTTPException(404)
        content = await _read_body(request, self._service.largest_result if name == "result" else MAX_WORDS)
        if name == "result":
            await self._take_result(content)
        else:
            words = "".join(c for c in content.decode(errors="replace") if c.isprintable())
            self._events.put(Event(kind="progress" if name == "progress" else "failure", text=words))
        return Response()

    async def _take_result(self, content: bytes) -> None:
        """Accept a result: the first valid one."""
        async with self._taking:
            if self._taken:
                raise HTTPException(409, "A result was sent already; start the command again for another.")
            try:
                result = await run_in_threadpool(self._service.accept, content)
            except QilDeployError as error:
                raise HTTPException(422, f"The result was refused: {error}") from error
            self._taken = True
        self._events.put(Event(kind="result", result=result))

    def _name(self, request: Request) -> str:
        """Return the name of the requested resource; refuse requests from other pages and without the token."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in self._origins:
            raise HTTPException(403, "Requests of other pages are refused.")
        given = request.path_params["token"].encode(errors="replace")
        if not secrets.compare_digest(given, self._token.encode()) or request.url.query:
            raise HTTPException(404)
        return str(request.path_params["name"])


async def _read_body(request: Request, largest: int) -> bytes:
    """Return the body of a post, whose length is declared and enforced (by h11)."""
    length = request.headers.get("Content-Length")
    # What is not read of a refused request would be taken for the next one.
    close = {"Connection": "close"}
    if length is None or "Transfer-Encoding" in request.headers:
        raise HTTPException(411, "A post has to say its length.", close)
    if int(length) > largest:
        raise HTTPException(413, f"A post may have {largest} bytes here.", close)
    return await request.body()


def _is_loopback_or_any(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
