"""The page's server: resources that it serves, posts that it takes, and everything that it refuses."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from qil_deploy.errors import DataError, TargetError
from qil_deploy.runtime_tests.phone import connections as connections_module
from qil_deploy.runtime_tests.phone.connections import MOST, BoundedConnection, Stage, choose_to_end
from qil_deploy.runtime_tests.phone.server import HEADERS, MAX_WORDS, Event, PageServer, Service

LARGEST = 1000


def accept(content: bytes) -> str:
    """Accept anything but "wrong"."""
    if content == b"wrong":
        raise DataError("it is wrong.")
    return content.decode()


SERVICE = Service(
    resources={
        "": b"<p>page",
        "model.onnx": lambda: b"model",
        "large": bytes(1 << 24),
    },
    accept=accept,
    largest_result=LARGEST,
)


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer(SERVICE) as running:
        yield running


Ask = Callable[..., tuple[int, str, http.client.HTTPResponse]]


@pytest.fixture
def ask(server: PageServer) -> Ask:
    """Return a function that sends one request below the token and returns status, body and response."""

    def send(
        method: str, name: str, body: bytes | None = None, *, path: str | None = None, **headers: str
    ) -> tuple[int, str, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        whole = "/" + server.url("127.0.0.1").split("/", 3)[3] + name if path is None else path
        connection.request(method, whole, body=body, headers=headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text, response

    return send


def test_it_serves_its_table_with_headers_that_isolate_the_page(ask: Ask) -> None:
    status, text, response = ask("GET", "")
    assert (status, text, response.getheader("Content-Type")) == (200, "<p>page", "text/html; charset=utf-8")
    for name in ("model.onnx", "large"):
        assert ask("GET", name)[2].getheader("Content-Type") == "application/octet-stream"
    assert ask("GET", "model.onnx")[1] == "model"
    assert response.getheader("Cross-Origin-Opener-Policy") == "same-origin"
    assert response.getheader("Cross-Origin-Embedder-Policy") == "require-corp"
    for name, value in HEADERS.items():
        assert response.getheader(name) == value


@pytest.mark.parametrize(
    "name",
    ["absent", "/", "../model.onnx", "..%2fmodel.onnx", "%2e%2e/", "/etc/passwd", "model.onnx?x=1", "model.onnx/", "."],
)
def test_whatever_is_not_in_the_table_is_not_there(ask: Ask, name: str) -> None:
    assert ask("GET", name)[0] == 404


def test_without_the_token_there_is_nothing(ask: Ask, server: PageServer) -> None:
    token = server.url("x").split("/")[3]
    for path in ("/", "/model.onnx", f"/{token}", f"/{token[:-1]}x/model.onnx", "/" * 100, "/%C3%A9", "*"):
        status, text, _ = ask("GET", "", path=path)
        assert status == 404
        assert "use the whole address" in text
    assert ask("POST", "", b"x", path="/result")[0] == 404


def test_tokens_are_drawn_anew() -> None:
    with PageServer(SERVICE) as one, PageServer(SERVICE) as other:
        assert one.url("x").split("/")[3] != other.url("x").split("/")[3]


def test_other_names_of_this_machine_are_refused(ask: Ask, server: PageServer) -> None:
    for host in (
        "evil.example",
        f"evil.example:{server.port}",
        "phone.test",
        f"127.0.0.1.evil.example:{server.port}",
        "",
    ):
        status, text, _ = ask("GET", "", Host=host)
        assert (status, text) == (400, "Invalid host header")
    assert ask("GET", "", Host=f"LOCALHOST:{server.port}")[0] == 200
    with PageServer(SERVICE, names=("phone.test",)) as named:
        connection = http.client.HTTPConnection("127.0.0.1", named.port)
        path = "/" + named.url("phone.test").split("/", 3)[3]
        connection.request("GET", path, headers={"Host": f"phone.test:{named.port}"})
        assert connection.getresponse().status == 200
        connection.close()


def test_posts_of_other_pages_are_refused(ask: Ask, server: PageServer) -> None:
    assert ask("POST", "progress", b"x", Origin="http://evil.example")[0] == 403
    assert ask("POST", "progress", b"x", Origin="null")[0] == 403
    assert ask("POST", "progress", b"x", Origin=f"http://127.0.0.1:{server.port}")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(ask: Ask, method: str) -> None:
    assert ask(method, "")[0] == 405
    assert ask("HEAD", "")[:2] == (200, "")


def test_nothing_is_posted_to_what_is_served(ask: Ask) -> None:
    for name in ("", "model.onnx", "result/"):
        assert ask("POST", name, b"x")[0] == 404


def test_what_the_page_does_is_told_in_order(ask: Ask, server: PageServer) -> None:
    ask("GET", "model.onnx")
    ask("POST", "progress", b"3 of 4\x1b[2J\n")
    ask("POST", "failure", b"\xff out of memory")
    assert ask("POST", "result", b"all well")[0] == 200
    events = [server.next_event(120) for _ in range(4)]
    assert events == [
        Event(kind="asked", text="model.onnx"),
        Event(kind="progress", text="3 of 4[2J"),
        Event(kind="failure", text="\N{REPLACEMENT CHARACTER} out of memory"),
        Event(kind="result", result="all well"),
    ]
    assert server.next_event(0.01) is None


def test_one_result_is_taken_and_wrong_ones_before_it_are_refused_with_the_reason(ask: Ask) -> None:
    assert ask("POST", "result", b"wrong")[:2] == (422, "The result was refused: it is wrong.")
    assert ask("POST", "result", b"right")[0] == 200
    status, text, _ = ask("POST", "result", b"right")
    assert (status, text) == (409, "A result was sent already; start the command again for another.")


@pytest.mark.parametrize(("name", "largest"), [("result", LARGEST), ("progress", MAX_WORDS), ("failure", MAX_WORDS)])
def test_posts_are_bounded(ask: Ask, name: str, largest: int) -> None:
    assert ask("POST", name, b"x" * largest)[0] == 200
    status, text, _ = ask("POST", name, b"x" * (largest + 1))
    assert (status, text) == (413, f"A post may have {largest} bytes here.")
    for length in ("-1", "1e3", "", "9" * 5000, "٣"):
        status, _, _ = ask("POST", name, None, **{"Content-Length": length.encode().decode("latin-1")})
        assert status in {400, 411, 413}
    assert ask("POST", name, None, **{"Transfer-Encoding": "chunked", "Content-Length": "3"})[0] == 411


def test_half_a_post_and_noise_hurt_nobody(ask: Ask, server: PageServer) -> None:
    path = "/" + server.url("x").split("/", 3)[3]
    half = f"POST {path}result HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 900\r\n\r\nhalf"
    for noise in (half.encode(), b"\x00\xff\x16\x03\x01", b"GET", b""):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(noise)
    assert ask("GET", "")[0] == 200
    event = server.next_event(120)
    assert event is not None
    assert event.kind == "asked"


@pytest.fixture
def opened(server: PageServer) -> Iterator[Callable[[bytes], socket.socket]]:
    """Return a function that opens a connection and sends only the beginning of a request."""
    connections = []

    def start(begun: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=120)
        connections.append(connection)
        connection.sendall(begun)
        return connection

    yield start
    for connection in connections:
        connection.close()


def head(server: PageServer, method: str, name: str, **headers: object) -> bytes:
    """Return the head of a valid request."""
    path = "/" + server.url("x").split("/", 3)[3] + name
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


BEGUN: dict[str, Callable[[PageServer], bytes]] = {
    "nothing": lambda _: b"",
    "half a line": lambda _: b"GE",
    "half a head": lambda server: head(server, "GET", "")[:-2],
    "no body": lambda server: head(server, "POST", "result", Content_Length=900),
    "half a body": lambda server: head(server, "POST", "result", Content_Length=900) + b"half",
    "a request before": lambda server: head(server, "GET", "") + b"GET",
    "an answer that is not read": lambda server: head(server, "GET", "large"),
}


@pytest.mark.parametrize("begun", BEGUN)
def test_fifty_connections_that_say_little_keep_nobody_out(
    server: PageServer, opened: Callable[[bytes], socket.socket], ask: Ask, begun: str
) -> None:
    slow = [opened(BEGUN[begun](server)) for _ in range(50)]
    for _ in range(3):
        assert ask("GET", "")[:2] == (200, "<p>page")
    assert ask("POST", "result", b"all well")[0] == 200
    assert len(slow) > MOST >= len(server.connections)  # some have made room


def test_a_good_connection_stays_while_others_come_from_elsewhere() -> None:
    def connection(address: str, stage: Stage, since: float) -> BoundedConnection:
        return cast(BoundedConnection, SimpleNamespace(address=address, stage=stage, since=since))

    phone = connection("phone", Stage.READING, 0.0)
    attackers = [connection("attacker", Stage.READING, since) for since in (3.0, 1.0, 2.0)]
    assert choose_to_end([phone, *attackers]) is attackers[1]  # the attacker's own, the one that is there longest
    idle, answering = connection("phone", Stage.IDLE, 5.0), connection("attacker", Stage.ANSWERING, 0.0)
    assert choose_to_end([answering, idle]) is idle


@pytest.mark.parametrize(
    ("begun", "drop"),
    [(b"", b"G"), (b"GET / HTTP/1.1\r\n", b"X: x\r\n"), (None, b"x")],
    ids=["request line", "head", "body"],
)
def test_a_request_that_drips_is_ended_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, begun: bytes | None, drop: bytes
) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(connections_module, name, 0.2)
    monkeypatch.setattr(connections_module, "SLOWEST", 1e9)
    with PageServer(SERVICE) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(0.05)
        connection.sendall(head(server, "POST", "result", Content_Length=LARGEST) if begun is None else begun)
        for _ in range(900):  # each within any limit for one silence; none of them ends the request
            try:
                connection.sendall(drop)
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("it dripped to the end")


def test_addresses_that_cannot_be_served_on_are_named(server: PageServer) -> None:
    with pytest.raises(TargetError, match=rf"cannot serve on 127\.0\.0\.1, port {server.port}: .*in use"):
        PageServer(SERVICE, port=server.port)
    for host, port in (("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 70000), ("a" * 100, 0)):
        with pytest.raises(TargetError, match=r"cannot serve on .*Choose another --port or --host"):
            PageServer(SERVICE, host=host, port=port)
