"""The guard in front of a real uvicorn on the loopback, spoken to in raw bytes."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from a2wsgi import WSGIMiddleware
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from pytest_django import Settings

from k1node.api import connections, guard
from k1node.api.connections import BoundedConnection
from k1node.api.guard import Guard

MEGABYTE = 1024 * 1024
BODY_SECONDS = 0.4
HEAD_SECONDS = 0.5

Connect = Callable[[], socket.socket]


def tell(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Answer with what arrived: a WSGI application. `/flood` answers with 64 MB, `/slow` after a second."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(2 * HEAD_SECONDS)
    if environ["PATH_INFO"] == "/flood":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"x" * MEGABYTE for _ in range(64))
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    told = {
        "length": environ["CONTENT_LENGTH"],
        "body": body.decode()[:100],
        "headers": {name: value for name, value in environ.items() if name.startswith("HTTP_")},
    }
    content = json.dumps(told).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]


class HastyConnection(BoundedConnection):
    head_seconds = HEAD_SECONDS


@contextmanager
def serving(application: Guard) -> Iterator[int]:
    """Serve `application` in a thread on a free port of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, log_config=None, lifespan="on", http=HastyConnection)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app: Any = WSGIMiddleware(tell, workers=2)
    with serving(Guard(app, max_held_bytes=4 * MEGABYTE, body_seconds=BODY_SECONDS, send_seconds=0.4)) as number:
        yield number


@pytest.fixture
def connect(port: int) -> Iterator[Connect]:
    """Return a maker of connections to the server, closed after the test."""
    made: list[socket.socket] = []

    def make() -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        return made[-1]

    yield make
    for each in made:
        each.close()


def read(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one answer."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, stream.read(int(headers.get("content-length", 0)))


def ask(connection: socket.socket, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    connection.sendall(head.replace("\n", "\r\n").encode("latin1") + b"\r\n\r\n" + body)
    return read(connection)


def error_code(status: int, headers: dict[str, str], body: bytes) -> str:
    error = json.loads(body)["error"]
    assert error["status"] == status
    assert error["request_id"] == headers["x-request-id"]
    return str(error["code"])


def test_a_chunked_body_arrives_whole_with_its_length(connect: Connect) -> None:
    head = "POST /api/x HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked"

    status, _, body = ask(connect(), head, b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")

    told = json.loads(body)
    assert (status, told["length"], told["body"]) == (200, "11", "hello world")
    assert "HTTP_TRANSFER_ENCODING" not in told["headers"]


def test_a_connection_is_used_again(connect: Connect) -> None:
    connection = connect()

    for body in (b"one", b"", b"three"):
        status, _, answer = ask(connection, f"POST /x HTTP/1.1\nHost: localhost\nContent-Length: {len(body)}", body)
        assert (status, json.loads(answer)["body"]) == (200, body.decode())


def test_a_megabyte_is_let_through(connect: Connect) -> None:
    head = f"POST /x HTTP/1.1\nHost: localhost\nContent-Length: {MEGABYTE}"

    status, _, body = ask(connect(), head, b"x" * MEGABYTE)

    assert (status, json.loads(body)["length"]) == (200, str(MEGABYTE))


def test_a_declared_length_over_the_cap_is_refused_before_the_body(connect: Connect) -> None:
    connection = connect()

    answer = ask(connection, f"POST /api/x HTTP/1.1\nHost: localhost\nContent-Length: {MEGABYTE + 1}")

    assert (answer[0], error_code(*answer)) == (413, "PAYLOAD_TOO_LARGE")
    assert answer[1]["connection"] == "close"


def test_who_asks_first_is_not_told_to_go_on(connect: Connect) -> None:
    connection = connect()
    head = f"POST /api/x HTTP/1.1\nHost: localhost\nExpect: 100-continue\nContent-Length: {50 * MEGABYTE}"

    assert ask(connection, head)[0] == 413


def test_a_stream_over_the_cap_is_cut_and_its_sender_reads_why(connect: Connect) -> None:
    connection = connect()
    head = b"POST /api/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

    connection.sendall(head)
    for _ in range(3 * 16):
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    answer = read(connection)

    assert (answer[0], error_code(*answer)) == (413, "PAYLOAD_TOO_LARGE")


def test_an_endless_stream_is_hung_up_on(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"POST /api/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    sent = 0

    with pytest.raises(OSError):  # noqa: PT011
        for _ in range(10_000):
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536

    assert sent < 64 * MEGABYTE


def test_a_slow_body_is_given_up(connect: Connect) -> None:
    started = time.monotonic()

    answer = ask(connect(), "POST /api/x HTTP/1.1\nHost: localhost\nContent-Length: 10", b"12345")

    assert (answer[0], error_code(*answer)) == (408, "REQUEST_TIMEOUT")
    assert time.monotonic() - started < BODY_SECONDS + 1


def test_elsewhere_a_refusal_is_plain_text(connect: Connect) -> None:
    status, headers, _ = ask(connect(), f"POST /admin/ HTTP/1.1\nHost: localhost\nContent-Length: {2 * MEGABYTE}")

    assert (status, headers["content-type"]) == (413, "text/plain; charset=utf-8")


def test_a_refused_request_keeps_its_id(connect: Connect) -> None:
    head = f"POST /api/x HTTP/1.1\nHost: localhost\nX-Request-Id: mine\nContent-Length: {2 * MEGABYTE}"

    assert ask(connect(), head)[1]["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("path", "header", "begins", "media_type"),
    [
        ("/api/v2/x", "Accept: */*", b'{"error":{"code":"PAYLOAD_TOO_LARGE"', "application/json"),
        ("/api/v1/x", "Accept: */*", b'{"status":"error","error":{"code":"PAYLOAD_TOO_LARGE"', "application/json"),
        ("/api/v1/x", "X-API-Version: 9", b'{"error":{"code":"PAYLOAD_TOO_LARGE"', "application/json"),
        ("/api/x", "Accept: application/problem+json", b'{"type":"/api/errors#PAYLOAD', "application/problem+json"),
    ],
)
def test_a_refusal_has_the_form_that_was_asked_for(
    connect: Connect, path: str, header: str, begins: bytes, media_type: str
) -> None:
    head = f"POST {path} HTTP/1.1\nHost: localhost\nContent-Length: {2 * MEGABYTE}\n{header}"

    status, headers, body = ask(connect(), head)

    assert (status, headers["content-type"], body[: len(begins)]) == (413, media_type, begins)
    assert headers["vary"] == "Accept, X-API-Version"
    assert headers["link"] == '</api/errors#PAYLOAD_TOO_LARGE>; rel="help"'


def test_version_1_is_over_in_refusals_too(connect: Connect, settings: Settings) -> None:
    settings.K1NODE_V1_SUNSET_ON = datetime.now(UTC).date() - timedelta(days=1)
    head = f"POST /api/v1/x HTTP/1.1\nHost: localhost\nContent-Length: {2 * MEGABYTE}"

    assert ask(connect(), head)[2].startswith(b'{"error":')


def test_a_charset_that_is_not_taken_comes_with_what_is(connect: Connect) -> None:
    content_type = "application/json; charset=utf-16"

    status, headers, body = ask(connect(), f"POST /api/x HTTP/1.1\nHost: localhost\nContent-Type: {content_type}")

    (detail,) = json.loads(body)["error"]["details"]
    assert (status, detail["field"], content_type in detail["message"]) == (415, "Content-Type", True)
    assert headers["accept"] == headers["accept-post"]
    assert headers["accept"].startswith("application/json, ")


def test_headers_with_an_underscore_are_dropped(connect: Connect) -> None:
    head = "GET /x HTTP/1.1\nHost: localhost\nX_Forwarded_For: 6.6.6.6\nX-Forwarded-For: 1.1.1.1\nX_Other: 1"

    headers = json.loads(ask(connect(), head)[2])["headers"]

    assert headers["HTTP_X_FORWARDED_FOR"] == "1.1.1.1"
    assert "HTTP_X_OTHER" not in headers


def test_unfinished_posts_do_not_freeze_a_get(connect: Connect) -> None:
    for _ in range(10):
        connect().sendall(b"POST /api/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123")
    started = time.monotonic()

    status, _, _ = ask(connect(), "GET /x HTTP/1.1\nHost: localhost")

    assert status == 200
    assert time.monotonic() - started < BODY_SECONDS


def test_clients_that_do_not_read_hold_no_thread(connect: Connect) -> None:
    for _ in range(4):
        connect().sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")

    status, _, _ = ask(connect(), "GET /x HTTP/1.1\nHost: localhost")

    assert status == 200


def test_clients_that_leave_do_no_harm(connect: Connect) -> None:
    for head in (
        b"POST /api/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123",
        b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /x",
    ):
        leaving = connect()
        leaving.sendall(head)
        leaving.close()

    assert ask(connect(), "GET /x HTTP/1.1\nHost: localhost")[0] == 200


def test_alive_is_answered_without_the_application(connect: Connect) -> None:
    status, headers, body = ask(connect(), "GET /healthz HTTP/1.1\nHost: 10.0.0.1")

    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", {"status": "ok"})


def test_overlong_addresses_are_refused(connect: Connect) -> None:
    answer = ask(connect(), f"GET /api/x?{'a' * 9000} HTTP/1.1\nHost: localhost")

    assert (answer[0], error_code(*answer)) == (414, "URI_TOO_LONG")


@pytest.mark.parametrize("target", ["/api/x?a=\xe9", "/api/\xe9", "/api/%ff%fe", "/api/%ed%a0%80"])
def test_raw_bytes_in_an_address_are_no_server_error(connect: Connect, target: str) -> None:
    assert ask(connect(), f"GET {target} HTTP/1.1\nHost: localhost")[0] in (200, 400)


def test_websockets_are_turned_away(connect: Connect) -> None:
    head = (
        "GET /ws/live HTTP/1.1\nHost: localhost\nUpgrade: websocket\nConnection: Upgrade\n"
        "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    )

    assert ask(connect(), head)[0] == 403


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    """Say whether the server ends the connection without a word."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"GET /api/x HTTP/1.1\r\nHost: loc", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b'"ok"}'),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /api/x HT", b'"ok"}'),
    ],
    ids=["nothing", "an empty line", "half a head", "one request", "one and a half"],
)
def test_a_connection_that_sends_no_whole_head_is_closed(connect: Connect, sent: bytes, answer: bytes) -> None:
    connection = connect()
    connection.sendall(sent)
    if answer:
        assert connection.recv(1000).endswith(answer)
    if sent.endswith(b"\r\n"):
        connection.sendall(b"\r\n")  # which ends uvicorn's own wait for the next request

    assert is_closed_within(connection, HEAD_SECONDS + 3)


def test_a_head_that_drips_in_is_given_up(connect: Connect) -> None:
    connection = connect()
    started = time.monotonic()

    with pytest.raises(OSError):
        for byte in b"GET /api/x HTTP/1.1\r\nX-Long: " + b"x" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    assert time.monotonic() - started < HEAD_SECONDS + 3


def test_a_long_answer_is_waited_for_though_the_next_head_is_late(connect: Connect) -> None:
    connection = connect()

    status, _, _ = ask(connection, "GET /slow HTTP/1.1\nHost: localhost", b"GET /x HTTP/1.1\r\nHost: localhost\r\n")
    connection.sendall(b"\r\n")

    assert (status, read(connection)[0]) == (200, 200)


@pytest.mark.parametrize("shape", ["one header", "many headers", "the address", "trickled"])
def test_a_head_over_the_cap_is_refused(connect: Connect, shape: str) -> None:
    limit = connections.MAX_HEAD_BYTES
    head = {
        "one header": b"GET /api/x HTTP/1.1\r\nX-A: " + b"a" * 8 * limit,
        "many headers": b"GET /api/x HTTP/1.1\r\n" + b"a: b\r\n" * (limit // 5) + b"\r\n",
        "the address": b"GET /api/x?" + b"a" * limit + b" HTTP/1.1\r\n\r\n",
        "trickled": b"GET /api/x HTTP/1.1\r\nX-A: " + b"a" * 10,
    }[shape]
    connection = connect()

    connection.sendall(head)
    if shape == "trickled":
        with suppress(OSError):
            for _ in range(2 * limit // 1000):
                time.sleep(0.001)
                connection.sendall(b"a" * 1000)
    answer = read(connection)

    assert (answer[0], error_code(*answer)) == (431, "HEADERS_TOO_LARGE")
    assert answer[1]["connection"] == "close"


def test_a_large_body_behind_a_head_in_pieces_is_no_large_head(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"POST /x HTTP/1.1\r\nHost: localh")
    time.sleep(0.05)

    connection.sendall(b"ost\r\nContent-Length: %d\r\n\r\n" % MEGABYTE + b"x" * MEGABYTE)

    assert read(connection)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /api/x HTTP/1.1\r\nBad Header\r\n\r\n",
        b"POST /api/x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /api/x HTTP/1.1\r\nTransfer-Encoding: sliced\r\n\r\n0\r\n\r\n",
        b"POST /api/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_in_the_usual_form(connect: Connect, sent: bytes) -> None:
    connection = connect()
    connection.sendall(sent)

    status, headers, body = read(connection)

    assert status == 400
    assert headers["x-request-id"].startswith("req-")
    if b"/api/" in sent:
        assert error_code(status, headers, body) == "INVALID_REQUEST"


def test_nonsense_behind_a_request_is_not_taken_for_its_answer(connect: Connect) -> None:
    connection = connect()

    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\nnonsense\r\n\r\n")

    assert is_closed_within(connection, HEAD_SECONDS + 3)


def test_bodies_together_are_bounded(connect: Connect) -> None:
    head = f"POST /api/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MEGABYTE}\r\n\r\n".encode()
    for _ in range(4):
        connect().sendall(head + b"x" * (MEGABYTE - 1))
    time.sleep(0.1)

    answer = ask(connect(), "POST /api/x HTTP/1.1\nHost: localhost\nContent-Length: 100000", b"x" * 100_000)
    time.sleep(BODY_SECONDS + guard.LINGER_SECONDS + 0.2)
    later = ask(connect(), f"POST /x HTTP/1.1\nHost: localhost\nContent-Length: {MEGABYTE}", b"x" * MEGABYTE)

    assert (answer[0], error_code(*answer)) == (503, "SERVICE_UNAVAILABLE")
    assert answer[1]["retry-after"] == "5"
    assert later[0] == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ('application/json; charset="UTF-8"', 200),
        ("multipart/form-data; boundary=x", 200),
        ("application/json; charset*=bogus''x", 400),
        ("multipart/form-data; boundary*=bogus''x", 400),
        (f"application/json; x*{'1' * 5000}=1", 400),
        ("application/json; x*=1; x*0=2", 400),
        ("application/json; charset*=utf-8''%00", 415),
        ("application/json; charset=hex", 415),
        ("application/json; charset=utf-7", 415),
        ("application/json; charset=undefined", 415),
    ],
)
def test_a_content_type_that_django_cannot_read_goes_no_further(
    connect: Connect, content_type: str, status: int
) -> None:
    assert ask(connect(), f"GET /api/x HTTP/1.1\nHost: localhost\nContent-Type: {content_type}")[0] == status


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.k1node.api_probe")
def test_django_keeps_its_connection_from_request_to_request() -> None:
    app: Any = WSGIMiddleware(get_wsgi_application(), workers=1)  # type: ignore[arg-type]

    with serving(Guard(app)) as number:
        seen = set()
        for query in ("", "", "?close"):
            with socket.create_connection(("127.0.0.1", number), timeout=10) as connection:
                status, _, body = ask(connection, f"GET /database{query} HTTP/1.1\nHost: localhost")
                seen.add((status, body))

    assert len(seen) == 1
    assert seen.pop()[0] == 200


def test_the_web_process_has_the_guard_in_front() -> None:
    from k1node import asgi

    assert isinstance(asgi.application, Guard)
    assert asgi.application.max_body_bytes == guard.MAX_BODY_BYTES == MEGABYTE
    assert asgi.application.body_seconds == 10


def test_the_web_process_bounds_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Mock()
    monkeypatch.setattr(uvicorn, "Server", server)

    call_command("web")

    assert server.call_args.args[0].http is BoundedConnection
    assert (BoundedConnection.max_head_bytes, BoundedConnection.head_seconds) == (64 * 1024, 10)
