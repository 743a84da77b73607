"""Single attempts over real sockets: what is sent, what a receiver can do about it, and where nothing may ever go."""

import asyncio
import json
import logging
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from standardwebhooks.webhooks import Webhook as Verifier

from tests.webhooks import receivers as made
from tests.webhooks.receivers import Authority, Receivers
from tests.webhooks.test_targets import CORPUS
from webhooks import sending, signing
from webhooks.delivery import Job
from webhooks.rules import Code, Result
from webhooks.targets import Rules

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
LOOPBACK = Rules(allow_private=True, production=False)
STRICT = Rules()
NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with made.receivers() as each:
        yield each


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.made_in(tmp_path_factory.mktemp("authority"))


class Resolver:
    """Stands where the machine's resolver stands: gives one list of addresses after the other, the last for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def a_job(url: str, **changed: Any) -> Job:
    job = Job(
        delivery=1,
        delivery_id="wh-dlv-1",
        attempt=2,
        webhook=1,
        webhook_id="wh-1",
        url=url,
        message_id="wh-evt-1",
        event="task.completed",
        occurred_at=NOW - timedelta(hours=1),
        data='{"task_id":"task-1"}',
        keys=(SECRET,),
        headers={},
        is_test=False,
    )
    return replace(job, **changed)


tls = lru_cache(sending.tls_context)  # reading the system's certificates takes longer than most of these tests


def network(
    rules: Rules = LOOPBACK, *, within: float = 30, resolver: sending.Lookup | None = None, ca_file: str = ""
) -> sending.Network:
    return sending.Network(
        rules=rules,
        within=timedelta(seconds=within),
        tls=tls(ca_file),
        names=sending.Names(resolver or Resolver(["127.0.0.1"])),
    )


def send(job: Job, through: sending.Network | None = None) -> Result:
    return asyncio.run(sending.send(through or network(), job, clock=lambda: NOW))


def attempt(port: int, through: sending.Network | None = None, **changed: Any) -> Result:
    return send(a_job(f"http://127.0.0.1:{port}/hook", **changed), through)


# --- what is sent ---


def test_a_message_arrives_with_everything_that_proves_it(receivers: Receivers) -> None:
    port = receivers.serve(made.answer(200, b'{"received":true}', X_Receiver="7"))

    result = attempt(port)

    (request,) = receivers.requests
    assert request.line == "POST /hook HTTP/1.1"
    assert json.loads(request.body) == {
        "id": "wh-evt-1",
        "timestamp": "2026-03-04T05:06:07.890+00:00",
        "event": "task.completed",
        "data": {"task_id": "task-1"},
        "occurred_at": "2026-03-04T04:06:07.890+00:00",
    }
    ours = signing.signatures((SECRET,), "wh-evt-1", request.body, now=NOW)
    assert {name: request[name] for name in ours} == ours
    assert [request[name] for name in ("Host", "Content-Type", "User-Agent", "Connection")] == [
        f"127.0.0.1:{port}",
        "application/json",
        "K1Node-Webhooks/2.0",
        "close",
    ]
    assert [request[f"X-K1Node-{name}"] for name in ("Event", "Delivery", "Attempt")] == [
        "task.completed",
        "wh-dlv-1",
        "2",
    ]
    assert "X-K1Node-Test" not in request
    assert "Cookie" not in request
    assert (result.code, result.status, result.error) == (Code.DELIVERED, 200, "")
    assert result.response_body == '{"received":true}'
    assert (result.response_headers or {})["X-Receiver"] == "7"
    assert (result.address, result.allowed_by, result.finished_at) == ("127.0.0.1", "WEBHOOK_ALLOW_PRIVATE", NOW)
    phases = (result.dns_ms, result.connect_ms, result.answer_ms)
    assert all(phase is not None and phase >= 0 for phase in phases)
    assert result.total_ms is not None
    assert result.total_ms >= sum(phase or 0 for phase in phases)


def test_the_official_library_verifies_what_arrived(receivers: Receivers) -> None:
    port = receivers.serve(made.answer())
    job = a_job(f"http://127.0.0.1:{port}/")

    asyncio.run(sending.send(network(), job, clock=lambda: datetime.now(UTC)))

    (request,) = receivers.requests
    told = Verifier(SECRET).verify(request.body, dict(request.headers))
    assert told["id"] == "wh-evt-1"


def test_a_test_says_that_it_is_one(receivers: Receivers) -> None:
    attempt(receivers.serve(made.answer()), is_test=True)

    assert receivers.requests[0]["X-K1Node-Test"] == "true"


def test_an_owner_adds_headers_but_replaces_none_of_the_nodes(receivers: Receivers) -> None:
    own = {
        "Authorization": "Bearer of-the-owner",
        "HOST": "169.254.169.254",
        "x-k1node-event": "another",
        "Webhook-Signature": "v1,forged",
        "content-length": "0",
        "Transfer-Encoding": "chunked",
        "User-Agent": "curl",
        "X-Split": "a\r\nX-Other: b",
    }
    port = receivers.serve(made.answer())

    result = attempt(port, headers=own)

    (request,) = receivers.requests
    assert request["Authorization"] == "Bearer of-the-owner"
    assert [request["Host"], request["X-K1Node-Event"]] == [f"127.0.0.1:{port}", "task.completed"]
    assert request["webhook-signature"] != "v1,forged"
    assert request["User-Agent"] == "K1Node-Webhooks/2.0"
    assert not [name for name in ("Transfer-Encoding", "X-Split", "X-Other") if name in request]
    assert result.code is Code.DELIVERED
    shown = result.request_headers or {}
    assert (shown["Authorization"], shown["X-K1Node-Event"]) == ("(hidden)", "task.completed")
    assert "of-the-owner" not in repr(result)


def test_nothing_is_sent_without_a_secret_to_sign_with(receivers: Receivers) -> None:
    result = attempt(receivers.serve(made.answer()), keys=())

    assert (result.code, receivers.connections) == (Code.SECRET, 0)


def test_the_path_goes_out_as_it_was_written(receivers: Receivers) -> None:
    port = receivers.serve(made.answer())

    send(a_job(f"http://127.0.0.1:{port}/a%2Fb/../c?x=%20&y=a+b&z=%7e"))

    assert receivers.requests[0].line == "POST /a%2Fb/../c?x=%20&y=a+b&z=%7e HTTP/1.1"


def test_proxies_of_the_environment_are_not_asked(receivers: Receivers, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = receivers.serve(made.answer(200, b"proxy"))
    port = receivers.serve(made.answer(200, b"receiver"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")

    assert attempt(port).response_body == "receiver"


def test_a_cookie_is_neither_kept_nor_shown(receivers: Receivers) -> None:
    port = receivers.serve(made.answer(200, b"", Set_Cookie="session=secret-of-the-receiver", X_Auth_Token="another"))
    through = network()

    async def twice() -> list[Result]:
        job = a_job(f"http://127.0.0.1:{port}/")
        return [await sending.send(through, job, clock=lambda: NOW) for _ in range(2)]

    results = asyncio.run(twice())

    assert ["Cookie" in request for request in receivers.requests] == [False, False]
    assert receivers.connections == 2
    assert "secret-of-the-receiver" not in repr(results)
    assert (results[0].response_headers or {})["X-Auth-Token"] == "(hidden)"


# --- what answers count as ---


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, Code.DELIVERED),
        (204, Code.DELIVERED),
        (299, Code.DELIVERED),
        (304, Code.REDIRECT),
        (400, Code.REFUSED),
        (404, Code.REFUSED),
        (410, Code.GONE),
        (429, Code.THROTTLED),
        (500, Code.UNAVAILABLE),
        (503, Code.UNAVAILABLE),
    ],
)
def test_the_status_says_what_became_of_it(receivers: Receivers, status: int, code: Code) -> None:
    result = attempt(receivers.serve(made.answer(status, b"")))

    assert (result.code, result.status) == (code, status)
    assert bool(result.error) == (code is not Code.DELIVERED)


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7), ("Wed, 04 Mar 2026 05:06:17 GMT", 9.109877), ("999999999999", 3600), ("soon", None)]
)
def test_the_wait_that_a_receiver_asks_for_is_told(receivers: Receivers, text: str, seconds: float | None) -> None:
    result = attempt(receivers.serve(made.answer(429, b"", Retry_After=text)))

    assert result.retry_after == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receivers: Receivers, status: int) -> None:
    elsewhere = receivers.serve(made.answer(200, b"elsewhere"))
    for location in (made.METADATA, f"http://127.0.0.1:{elsewhere}/"):
        result = attempt(receivers.serve(made.answer(status, b"", Location=location)))

        assert (result.code, result.status) == (Code.REDIRECT, status)
    assert receivers.connections == 2


# --- hostile receivers ---

BIG = 65536
HOSTILE: dict[str, tuple[Callable[[Receivers], made.Behaviour], Code, int | None]] = {
    "the head drips": (lambda _: made.dripping(made.HEAD + b"X: ", b"a", every=0.05), Code.TIMEOUT, None),
    "no answer": (lambda _: made.raw(b"", hang=True), Code.TIMEOUT, None),
    "the head does not end": (lambda _: made.raw(made.HEAD, hang=True), Code.TIMEOUT, None),
    "continue, for ever": (lambda each: made.endless(each, b"", made.CONTINUE * 1000), Code.PROTOCOL, None),
    "continue, slowly": (lambda _: made.dripping(b"", made.CONTINUE, every=0.05), Code.TIMEOUT, None),
    "the body drips": (lambda _: made.dripping(made.CHUNKED, b"1\r\nx\r\n", every=0.05), Code.TIMEOUT, 200),
    "the body does not end": (lambda _: made.raw(made.HEAD + b"\r\n", hang=True), Code.TIMEOUT, 200),
    "an endless body": (lambda each: made.endless(each, made.CHUNKED, made.CHUNK), Code.DELIVERED, 200),
    "an endless body of no length": (
        lambda each: made.endless(each, made.HEAD + b"\r\n", b"x" * BIG),
        Code.DELIVERED,
        200,
    ),
    "a length beyond all": (
        lambda each: made.endless(each, made.HEAD + b"Content-Length: 999999999999\r\n\r\n", b"x" * BIG),
        Code.DELIVERED,
        200,
    ),
    "an error that never ends": (
        lambda each: made.endless(each, b"HTTP/1.1 500 No\r\n\r\n", b"x" * BIG),
        Code.UNAVAILABLE,
        500,
    ),
    "an endless extension of a chunk": (
        lambda each: made.endless(each, made.CHUNKED + b"1;", b"x" * BIG),
        Code.DELIVERED,
        200,
    ),
    "chunks of one byte, for ever": (
        lambda each: made.endless(each, made.CHUNKED, b"1\r\nx\r\n" * 4096),
        Code.DELIVERED,
        200,
    ),
    "a header that never ends": (
        lambda each: made.endless(each, made.HEAD + b"X: ", b"x" * BIG),
        Code.PROTOCOL,
        None,
    ),
    "the name of a header that never ends": (
        lambda each: made.endless(each, made.HEAD, b"x" * BIG),
        Code.PROTOCOL,
        None,
    ),
    "headers that never end": (lambda each: made.endless(each, made.HEAD, b"X: y\r\n" * 10000), Code.PROTOCOL, None),
    "large headers that never end": (
        lambda each: made.endless(each, made.HEAD, b"X: " + b"y" * 8000 + b"\r\n"),
        Code.PROTOCOL,
        None,
    ),
    "a reason that never ends": (lambda each: made.endless(each, b"HTTP/1.1 200 ", b"x" * BIG), Code.PROTOCOL, None),
    "empty lines that never end": (lambda each: made.endless(each, b"", b"\r\n" * BIG), Code.PROTOCOL, None),
    "trailers that never end": (
        lambda each: made.endless(each, made.CHUNKED + b"0\r\n" + b"X: y\r\n" * 5000, b"X: y\r\n" * 10000),
        Code.PROTOCOL,
        None,
    ),
    "closed at once": (lambda _: made.raw(b""), Code.PROTOCOL, None),
    "reset at once": (lambda _: made.raw(b"", reset=True), Code.PROTOCOL, None),
    "reset inside the head": (lambda _: made.raw(made.HEAD, reset=True), Code.PROTOCOL, None),
    "not HTTP": (lambda _: made.raw(b"220 mail.example.com ESMTP\r\n"), Code.PROTOCOL, None),
    "bytes": (lambda _: made.raw(bytes(range(256)) * 100), Code.PROTOCOL, None),
    "another status": (lambda _: made.raw(b"HTTP/1.1 two-hundred OK\r\n\r\n"), Code.PROTOCOL, None),
    "two lengths": (
        lambda _: made.raw(made.HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nabc"),
        Code.PROTOCOL,
        None,
    ),
    "another protocol": (
        lambda _: made.raw(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", hang=True),
        Code.PROTOCOL,
        None,
    ),
    "a broken chunk": (lambda _: made.raw(made.CHUNKED + b"zz\r\n"), Code.PROTOCOL, None),
    # The head is whole: it says what became of the message.
    "reset behind the head": (
        lambda _: made.raw(made.HEAD + b"Content-Length: 10\r\n\r\nabc", reset=True),
        Code.DELIVERED,
        200,
    ),
    "less than it said": (lambda _: made.raw(made.HEAD + b"Content-Length: 10\r\n\r\nabc"), Code.DELIVERED, 200),
    "HTTP/1.0": (lambda _: made.raw(b"HTTP/1.0 200 OK\r\n\r\nold"), Code.DELIVERED, 200),
    "a gzip bomb": (lambda _: made.gzip_bomb(), Code.DELIVERED, 200),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_receiver_hurts_the_node(receivers: Receivers, name: str) -> None:
    behaviour, code, status = HOSTILE[name]
    port = receivers.serve(behaviour(receivers))
    through = network(within=0.5 if code is Code.TIMEOUT else 30)
    tracemalloc.start()
    try:
        result = send(a_job(f"http://127.0.0.1:{port}/"), through)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (result.code, result.status) == (code, status), result.error
    assert bool(result.error) == (code is not Code.DELIVERED)
    assert len(result.error.splitlines()) <= 1
    assert len(result.response_body) <= sending.MOST_BODY
    assert len(json.dumps(result.response_headers)) < 6000
    assert receivers.connections == 1
    # What the kernel holds between the two is not much, and what this process does is less.
    assert receivers.written < made.TEN_MB
    assert peak < 3_000_000


def test_the_beginning_of_a_body_is_kept(receivers: Receivers) -> None:
    port = receivers.serve(made.endless(receivers, made.CHUNKED, made.CHUNK))

    assert attempt(port).response_body == "x" * sending.MOST_BODY


def test_an_encoded_body_is_not_decoded(receivers: Receivers) -> None:
    assert attempt(receivers.serve(made.gzip_bomb())).response_body == "(not shown: encoded as gzip)"


def test_what_a_database_refuses_and_a_terminal_obeys_is_replaced(receivers: Receivers) -> None:
    data = made.HEAD + b"X-Odd: \xff\x1b[31m\x7f\r\n\r\n" + b"a\0b\x1b[2J\xff\n\ttext \xc3\xa4"

    result = attempt(receivers.serve(made.raw(data)))

    assert result.response_body == "a\ufffdb\ufffd[2J\ufffd\n\ttext \u00e4"
    assert (result.response_headers or {})["X-Odd"] == "\ufffd\ufffd[31m\ufffd"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX-Key: internal" + b"l" * 9000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ninternal" + b"l" * 9000 + b": x\r\n\r\n",
        b"HTTP/1.1 200 internal" + b"l" * 9000 + b"\r\n\r\n",
        b"internal-2.0 banner of a service\r\n\r\n",
        b"HTTP/1.1 internal OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: internal\r\n\r\n",
    ],
    ids=["value", "name", "reason", "banner", "status", "length"],
)
def test_what_is_wrong_with_an_answer_is_told_without_its_words(receivers: Receivers, data: bytes) -> None:
    result = attempt(receivers.serve(made.raw(data)))

    assert result.code is Code.PROTOCOL
    assert "internal" not in result.error


def test_the_headers_of_an_answer_are_cut(receivers: Receivers) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(50))

    result = attempt(receivers.serve(made.raw(made.HEAD + lines + b"\r\n")))

    assert result.code is Code.DELIVERED
    assert sum(len(name) + len(value) for name, value in (result.response_headers or {}).items()) == sending.MOST_SHOWN


def test_headers_of_the_same_name_are_shown_together(receivers: Receivers) -> None:
    lines = b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nVia: x\r\nVia: y\r\n"

    result = attempt(receivers.serve(made.raw(made.HEAD + lines + b"\r\n")))

    assert result.response_headers == {"Set-Cookie": "(hidden)", "Via": "x, y"}


def test_a_receiver_that_takes_nothing_ends_with_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        port = silent.getsockname()[1]

        result = attempt(port, network(within=0.5), data=json.dumps("x" * 1_000_000))

    assert result.code is Code.TIMEOUT


def test_attempts_leave_nothing_open(receivers: Receivers) -> None:
    ports = [
        receivers.serve(HOSTILE[name][0](receivers)) for name in ("an endless body", "no answer", "closed at once")
    ]
    ports.append(receivers.serve(made.answer()))
    through = network(within=0.3)

    async def all_of_them() -> tuple[int, int]:
        await sending.send(through, a_job(f"http://127.0.0.1:{ports[-1]}/"), clock=lambda: NOW)
        before = len(asyncio.all_tasks())
        for port in ports:
            await sending.send(through, a_job(f"http://127.0.0.1:{port}/"), clock=lambda: NOW)
        await asyncio.sleep(0)
        return before, len(asyncio.all_tasks())

    before, after = asyncio.run(all_of_them())

    assert after == before


def test_a_cancelled_attempt_cuts_its_connection(receivers: Receivers) -> None:
    gone = threading.Event()

    async def behave(_request: made.Request, writer: asyncio.StreamWriter) -> None:
        writer.write(made.HEAD + b"\r\n")
        await writer.drain()
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            gone.set()

    port = receivers.serve(behave)

    async def cancelled() -> None:
        task = asyncio.create_task(sending.send(network(), a_job(f"http://127.0.0.1:{port}/"), clock=lambda: NOW))
        while not receivers.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())

    assert gone.wait(10)


# --- names, addresses and connections ---


def test_nobody_listens(receivers: Receivers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    result = attempt(port)

    assert (result.code, result.error) == (Code.CONNECT, "No connection to 127.0.0.1: Connection refused")


def test_a_connection_that_does_not_come_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))

        result = attempt(port)

        for each in waiting:
            each.close()
    assert (result.code, result.error) == (Code.CONNECT, f"No connection to 127.0.0.1 port {port} within 0.3 s")


def test_a_name_that_does_not_exist() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    result = send(a_job("https://nothing.example/"), network(resolver=unknown))

    assert (result.code, result.error) == (
        Code.DNS,
        "The name nothing.example cannot be resolved: Name or service not known",
    )
    assert send(a_job("https://nothing.example/"), network(resolver=Resolver([]))).code is Code.DNS


def test_a_name_server_that_hangs_holds_one_thread_and_no_other_name(
    receivers: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "NAME_SECONDS", 2.0)
    go_on = threading.Event()
    asked: list[str] = []

    def hanging(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == "slow.example":
            go_on.wait(30)
        return ["127.0.0.1"]

    port = receivers.serve(made.answer())
    through = network(resolver=hanging)

    async def both() -> list[Result]:
        slow = [a_job(f"http://slow.example:{port}/") for _ in range(100)]
        jobs = [*slow, a_job(f"http://fast.example:{port}/")]
        return await asyncio.gather(*(sending.send(through, job, clock=lambda: NOW) for job in jobs))

    *slow, fast = asyncio.run(both())
    go_on.set()

    assert {result.code for result in slow} == {Code.DNS}
    assert "within 2 s" in slow[0].error
    assert fast.code is Code.DELIVERED
    assert sorted(asked) == ["fast.example", "slow.example"]


def test_names_that_hang_do_not_hold_up_another(receivers: Receivers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "NAME_SECONDS", 2.0)
    go_on = threading.Event()

    def hanging(host: str, port: int) -> list[str]:
        if host != "fast.example":
            go_on.wait(30)
        return ["127.0.0.1"]

    port = receivers.serve(made.answer())
    through = network(resolver=hanging)

    async def all_of_them() -> list[Result]:
        urls = [f"http://slow{number}.example:{port}/" for number in range(100)]
        jobs = [a_job(url) for url in (*urls, f"http://fast.example:{port}/")]
        return await asyncio.gather(*(sending.send(through, job, clock=lambda: NOW) for job in jobs))

    try:
        *slow, fast = asyncio.run(all_of_them())
    finally:
        go_on.set()

    assert {result.code for result in slow} == {Code.DNS}
    assert fast.code is Code.DELIVERED


def test_the_machines_resolver_is_asked(receivers: Receivers) -> None:
    port = receivers.serve(made.answer())

    result = send(a_job(f"http://localhost:{port}/"), network(resolver=sending.look_up))

    assert (result.code, receivers.requests[0]["Host"]) == (Code.DELIVERED, f"localhost:{port}")


@pytest.mark.parametrize("address", CORPUS)
def test_no_address_of_the_corpus_is_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(sending._Connector, "_socket", lambda _self, info: opened.append(info))
    literal = f"[{address}]" if ":" in address else address
    tried = {
        "literal": (f"https://{literal}/", Resolver(["1.1.1.1"])),
        "answer": ("https://receiver.example/", Resolver([address])),
        "second answer": ("https://receiver.example/", Resolver(["1.1.1.1", address])),
        "first answer": ("https://receiver.example/", Resolver([address, "1.1.1.1"])),
    }

    results = {name: send(a_job(url), network(STRICT, resolver=resolver)) for name, (url, resolver) in tried.items()}

    assert {name: result.code for name, result in results.items()} == dict.fromkeys(tried, Code.BLOCKED)
    assert all("An operator can allow" in result.error for result in results.values())
    assert opened == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0x7f000001", "127.0.0.1."])
def test_numbers_in_other_forms_are_not_connected_to(receivers: Receivers, host: str) -> None:
    port = receivers.serve(made.answer())
    resolver = Resolver(["127.0.0.1"])

    result = send(a_job(f"http://{host}:{port}/"), network(resolver=resolver))

    assert (result.code, receivers.connections, resolver.asked) == (Code.BLOCKED, 0, [])


def test_a_name_that_rebinds_is_asked_once_and_connected_to_as_checked(receivers: Receivers) -> None:
    port = receivers.serve(made.answer())
    resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
    only_the_first = Rules(allowed=(ip_network("127.0.0.1/32"),))
    through = network(only_the_first, resolver=resolver)

    first = send(a_job(f"http://receiver.example:{port}/"), through)
    second = send(a_job(f"http://receiver.example:{port}/"), through)

    assert (first.code, first.address, first.allowed_by) == (Code.DELIVERED, "127.0.0.1", "127.0.0.1/32")
    assert (second.code, second.address) == (Code.BLOCKED, "127.0.0.2")
    assert receivers.connections == 1
    assert resolver.asked == ["receiver.example"] * 2


def test_a_socket_to_an_unchecked_address_is_not_opened(receivers: Receivers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the library ever connect to something else than it was given, the request does not go there."""
    port = receivers.serve(made.answer())
    monkeypatch.setattr(sending._Pinned, "resolve", _resolves_to("127.0.0.2", port))

    result = send(a_job(f"http://receiver.example:{port}/"))

    assert (result.code, result.error) == (Code.BLOCKED, "127.0.0.2 is not an address that was checked")
    assert receivers.connections == 0


def test_a_connection_that_came_out_elsewhere_gets_no_request(
    receivers: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receivers.serve(made.answer(), host="127.0.0.2")
    monkeypatch.setattr(sending._Pinned, "resolve", _resolves_to("127.0.0.2", port))
    monkeypatch.setattr(sending._Connector, "_socket", lambda _self, info: socket.socket(*info[:3]))

    result = send(a_job(f"http://receiver.example:{port}/"))

    assert (result.code, receivers.requests) == (Code.BLOCKED, [])


def _resolves_to(address: str, port: int) -> Callable[..., Any]:
    async def resolve(_self: object, host: str, *_given: object, **_named: object) -> list[dict[str, Any]]:
        found = {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [found]

    return resolve


def test_the_other_address_is_tried_when_one_does_not_answer(receivers: Receivers) -> None:
    port = receivers.serve(made.answer(), host="127.0.0.2")

    result = send(a_job(f"http://receiver.example:{port}/"), network(resolver=Resolver(["127.0.0.1", "127.0.0.2"])))

    assert (result.code, result.address) == (Code.DELIVERED, "127.0.0.2")


def test_a_name_of_many_addresses_is_tried_at_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refused(_self: object, info: Any) -> socket.socket:
        tried.append(info[4][0])
        raise OSError("no way there")

    monkeypatch.setattr(sending._Connector, "_socket", refused)
    many = [f"2606:4700::{number:x}" for number in range(1, 50)] + [f"1.1.1.{number}" for number in range(1, 50)]

    result = send(a_job("https://receiver.example/"), network(resolver=Resolver(many)))

    assert result.code is Code.CONNECT
    assert sorted(set(tried)) == ["1.1.1.1", "1.1.1.2", "2606:4700::1", "2606:4700::2"]


def test_an_odd_port_is_for_opened_addresses_alone() -> None:
    through = network(Rules(allowed=(ip_network("10.0.0.0/8"),)), resolver=Resolver(["1.1.1.1"]))

    result = send(a_job("https://receiver.example:9000/"), through)

    assert (result.code, result.address) == (Code.BLOCKED, "1.1.1.1")
    assert "Port 9000 is allowed only to networks that an operator has named" in result.error


def test_settings_that_have_changed_since_the_registration_count(receivers: Receivers) -> None:
    port = receivers.serve(made.answer())

    result = attempt(port, network(STRICT))

    assert (result.code, receivers.connections) == (Code.BLOCKED, 0)


# --- TLS ---


def over_tls(
    receivers: Receivers, context: ssl.SSLContext, authority: Authority | None, name: str = "receiver.example"
) -> Result:
    port = receivers.serve(made.answer(), tls=context)
    through = network(resolver=Resolver(["127.0.0.1"]), ca_file=authority.ca_file if authority else "")
    return send(a_job(f"https://{name}:{port}/"), through)


def test_a_receiver_of_the_named_authority_is_trusted(receivers: Receivers, authority: Authority) -> None:
    names: list[str | None] = []
    context = authority.context("receiver.example")
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    result = over_tls(receivers, context, authority)

    assert (result.code, names) == (Code.DELIVERED, ["receiver.example"])
    assert receivers.requests[0]["Host"].startswith("receiver.example:")


def test_an_address_can_be_certified_too(receivers: Receivers, authority: Authority) -> None:
    assert over_tls(receivers, authority.context("127.0.0.1"), authority, "127.0.0.1").code is Code.DELIVERED
    assert over_tls(receivers, authority.context("127.0.0.2"), authority, "127.0.0.1").code is Code.TLS


@pytest.mark.parametrize(
    ("made_with", "says"),
    [
        ({"names": ("another.example",)}, "Hostname mismatch"),
        ({"ends_in": timedelta(days=-1)}, "certificate has expired"),
        ({"self_signed": True}, "self-signed certificate"),
    ],
)
def test_a_wrong_certificate_is_refused(
    receivers: Receivers, authority: Authority, made_with: dict[str, Any], says: str
) -> None:
    context = authority.context(*made_with.pop("names", ("receiver.example",)), **made_with)

    result = over_tls(receivers, context, authority)

    assert result.code is Code.TLS
    assert says in result.error
    assert receivers.requests == []


def test_an_unknown_authority_is_refused(receivers: Receivers, authority: Authority) -> None:
    result = over_tls(receivers, authority.context("receiver.example"), None)

    assert (result.code, receivers.requests) == (Code.TLS, [])


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_old_tls_is_refused(receivers: Receivers, authority: Authority) -> None:
    context = authority.context("receiver.example")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    result = over_tls(receivers, context, authority)

    assert (result.code, receivers.requests) == (Code.TLS, [])


def test_a_receiver_without_tls_is_refused(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def speak() -> None:
            connection, _ = plain.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        speaker = threading.Thread(target=speak)
        speaker.start()
        result = send(a_job(f"https://receiver.example:{port}/"), network(ca_file=authority.ca_file))
        speaker.join()

    assert (result.code, result.error) == (Code.TLS, "TLS failed: wrong version number")


def test_a_handshake_that_hangs_ends_with_the_time_to_connect(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    monkeypatch.setattr(sending, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        result = send(a_job(f"https://receiver.example:{port}/"), network(ca_file=authority.ca_file))

    assert (result.code, "within 0.3 s" in result.error) == (Code.CONNECT, True)


def test_a_receiver_over_tls_that_never_ends_is_cut(receivers: Receivers, authority: Authority) -> None:
    context = authority.context("receiver.example")
    port = receivers.serve(made.endless(receivers, made.CHUNKED, made.CHUNK), tls=context)

    result = send(a_job(f"https://receiver.example:{port}/"), network(ca_file=authority.ca_file))

    assert (result.code, len(result.response_body)) == (Code.DELIVERED, sending.MOST_BODY)
    assert receivers.written < made.TEN_MB


def test_a_file_of_certificates_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")

    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(ImproperlyConfigured, match="WEBHOOK_CA_FILE"):
            sending.tls_context(str(path))


# --- what goes wrong in the node itself ---


def test_an_error_of_the_node_is_a_result_too(caplog: pytest.LogCaptureFixture) -> None:
    def broken(host: str, port: int) -> list[str]:
        raise RuntimeError("a bug")

    result = send(a_job("https://receiver.example/"), network(resolver=broken))

    assert (result.code, result.error) == (Code.PROTOCOL, "The node could not make the request: RuntimeError")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
