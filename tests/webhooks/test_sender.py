"""The loop of the sender over a real database and real receivers, from an event to a delivery that is recorded."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from pytest_django import Settings

from k1node.events import log
from k1node.lib.board import Board
from k1node.lib.node_id import node_id
from tests.factories import make_delivery, make_message, make_webhook
from tests.webhooks import receivers as made
from tests.webhooks.receivers import Receivers
from webhooks import delivery, fanout, results, sender, sending
from webhooks.models import Attempt, Delivery
from webhooks.rules import Code, Result
from webhooks.sender import Sender
from webhooks.targets import Rules

pytestmark = pytest.mark.django_db(transaction=True)

State = Delivery.State
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with made.receivers() as each:
        yield each


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "OUTAGE_SECONDS", 0.05)
    monkeypatch.setattr(sender, "STOP_SECONDS", 0.3)


def a_sender(board: Board, *, within: float = 30, name: str = "1:1") -> Sender:
    network = sending.Network(
        rules=Rules(allow_private=True, production=False),
        within=timedelta(seconds=within),
        tls=sending.tls_context(""),
        names=sending.Names(lambda _host, _port: ["127.0.0.1"]),
    )
    return Sender(network, board, owner=f"{node_id()}:{name}")


def run(one: Sender, until: Callable[[], Any] = lambda: True, *, within: float = 20) -> None:
    """Let the sender run until `until` is true, asked in a thread of its own, and stop it."""

    async def both() -> None:
        stopping = asyncio.Event()
        running = asyncio.create_task(one.run(stopping))
        end = asyncio.get_running_loop().time() + within
        while not await one._in_database(until):
            assert not running.done()
            assert asyncio.get_running_loop().time() < end, "it did not come true in time"
            await asyncio.sleep(0.02)
        stopping.set()
        await running

    asyncio.run(both())


def all_are(*states: str) -> Callable[[], bool]:
    return lambda: sorted(Delivery.objects.values_list("state", flat=True)) == sorted(states)


def due(port: int, **fields: Any) -> Delivery:
    """Return a delivery that is due, to a webhook of its own."""
    fields.setdefault("webhook", make_webhook(url=f"http://127.0.0.1:{port}/hook"))
    return make_delivery(due_at=LONG_AGO, **fields)


def test_an_event_arrives_and_its_delivery_tells(receivers: Receivers, board: Board) -> None:
    port = receivers.serve(made.answer(200, b"thanks"))
    fanout.begin()
    make_webhook(url=f"http://127.0.0.1:{port}/hook", events=["schedule.deleted"])
    log.publish("schedule.deleted", {"schedule_id": "sched-1"}, now=datetime.now(UTC))

    run(a_sender(board), all_are(State.DELIVERED))

    (request,) = receivers.requests
    delivery = Delivery.objects.select_related("message").get()
    attempt = Attempt.objects.get()
    assert json.loads(request.body)["id"] == request["webhook-id"] == delivery.message.message_id
    assert request["X-K1Node-Delivery"] == delivery.delivery_id
    assert (attempt.number, attempt.outcome, attempt.status) == (1, Code.DELIVERED, 200)
    assert (attempt.response_body, attempt.address) == ("thanks", "127.0.0.1")
    assert attempt.total_ms is not None


def test_a_failure_waits_for_its_next_try(receivers: Receivers, board: Board) -> None:
    delivery = due(receivers.serve(made.answer(500, b"")))

    run(a_sender(board), lambda: Delivery.objects.filter(spent=1).exists())

    delivery.refresh_from_db()
    assert (delivery.state, delivery.attempts, delivery.last_status) == (State.PENDING, 1, 500)
    assert delivery.due_at > datetime.now(UTC)
    assert len(receivers.requests) == 1


def test_a_test_goes_to_an_inactive_webhook(receivers: Receivers, board: Board) -> None:
    port = receivers.serve(made.answer())
    webhook = make_webhook(url=f"http://127.0.0.1:{port}/hook", active=False)
    due(port, webhook=webhook, is_test=True)

    run(a_sender(board), all_are(State.DELIVERED))

    assert receivers.requests[0]["X-K1Node-Test"] == "true"


def test_many_are_sent_at_the_same_time(receivers: Receivers, board: Board) -> None:
    port = receivers.serve(made.answer())
    slow = receivers.serve(made.raw(b"", hang=True))
    hanging = [due(slow) for _ in range(3)]
    webhook = make_webhook(url=f"http://127.0.0.1:{port}/hook", max_in_flight=32)
    for _ in range(100):
        due(port, webhook=webhook)

    run(a_sender(board), lambda: Delivery.objects.filter(state=State.DELIVERED).count() == 100)

    assert len(receivers.requests) == 103
    assert len({request["webhook-id"] for request in receivers.requests}) == 103
    assert {Delivery.objects.get(pk=each.pk).state for each in hanging} == {State.PENDING}


def test_a_stop_waits_for_what_is_under_way(
    receivers: Receivers, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "STOP_SECONDS", 10)

    async def slowly(_request: made.Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(made.HEAD + b"\r\n")

    due(receivers.serve(slowly))

    run(a_sender(board), lambda: receivers.requests)

    assert Delivery.objects.get().state == State.DELIVERED


def test_a_stop_gives_back_what_does_not_end(receivers: Receivers, board: Board) -> None:
    due(receivers.serve(made.raw(b"", hang=True)))

    run(a_sender(board), lambda: receivers.requests)

    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.spent, delivery.attempts) == (State.PENDING, 0, 1)
    assert Attempt.objects.get().outcome == Attempt.UNKNOWN


def test_the_next_sender_of_a_node_takes_back_what_the_last_one_had(receivers: Receivers, board: Board) -> None:
    port = receivers.serve(made.answer())
    lease = datetime.now(UTC) + timedelta(hours=1)
    own = due(port, state=State.SENDING, attempts=1, owner=f"{node_id()}:7:7", lease_expires_at=lease)
    other = due(port, state=State.SENDING, attempts=1, owner="another-node:7:7", lease_expires_at=lease)

    run(a_sender(board), lambda: Delivery.objects.filter(state=State.DELIVERED).exists())

    own.refresh_from_db()
    other.refresh_from_db()
    assert (own.state, own.attempts) == (State.DELIVERED, 2)
    assert other.state == State.SENDING


def test_leases_of_other_nodes_that_ran_out_are_rescued(receivers: Receivers, board: Board) -> None:
    due(
        receivers.serve(made.answer()),
        state=State.SENDING,
        attempts=1,
        owner="another-node:7:7",
        lease_expires_at=LONG_AGO,
    )

    run(a_sender(board), all_are(State.DELIVERED))

    assert Delivery.objects.get().attempts == 2


def test_an_outage_loses_no_result(receivers: Receivers, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    record = results.record
    failures: list[int] = []

    def failing(reports: Any, *, now: datetime) -> None:
        if reports and len(failures) < 3:
            failures.append(len(reports))
            raise OperationalError("the database is gone")
        record(reports, now=now)

    monkeypatch.setattr(results, "record", failing)
    due(receivers.serve(made.answer()))

    run(a_sender(board), all_are(State.DELIVERED))

    assert (failures, len(receivers.requests)) == ([1, 1, 1], 1)
    assert Attempt.objects.get().outcome == Code.DELIVERED


def test_a_result_that_cannot_be_recorded_holds_up_no_other(
    receivers: Receivers, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = due(receivers.serve(made.answer(200, b"poison")))
    good = due(receivers.serve(made.answer(200, b"good")))
    record = results.record

    def picky(reports: Any, *, now: datetime) -> None:
        if any(result.response_body == "poison" for _, result in reports):
            raise ValueError("it cannot be stored")
        record(reports, now=now)

    monkeypatch.setattr(results, "record", picky)

    run(a_sender(board), all_are(State.DELIVERED, State.DELIVERED))

    assert Attempt.objects.get(delivery=bad).response_body == ""
    assert Attempt.objects.get(delivery=good).response_body == "good"


def test_a_duty_that_fails_does_not_hold_up_the_others(
    receivers: Receivers, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*, now: datetime) -> bool:
        raise ValueError("a bug")

    monkeypatch.setattr(fanout, "advance", broken)
    due(receivers.serve(made.answer()))

    run(a_sender(board), all_are(State.DELIVERED))


def test_what_the_database_has_not_taken_counts_as_in_flight(board: Board) -> None:
    one = a_sender(board)
    job = _job()
    one._finished = [(job, Result(Code.DELIVERED, LONG_AGO))] * (sender.MOST_IN_FLIGHT - 1)

    assert one._free == 1
    one._finished *= 2
    assert one._free == 0


def test_the_last_free_places_are_kept_for_who_has_nothing_under_way(board: Board) -> None:
    one = a_sender(board)
    report = (_job(), Result(Code.DELIVERED, LONG_AGO))

    kept = {}
    for used in (0, 256, 300, 384, 500, 512):
        one._finished = [report] * used
        kept[used] = (one._free, one._kept)

    assert kept == {0: (128, 0), 256: (128, 0), 300: (128, 44), 384: (128, 128), 500: (12, 12), 512: (0, 0)}


def test_endpoints_that_hang_do_not_hold_up_the_others(
    receivers: Receivers, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MOST_IN_FLIGHT", 8)
    monkeypatch.setattr(sender, "KEPT", 2)
    slow = receivers.serve(made.raw(b"", hang=True))
    for _ in range(2):
        webhook = make_webhook(url=f"http://127.0.0.1:{slow}/hook", max_in_flight=32)
        for _ in range(8):
            due(slow, webhook=webhook)
    healthy: list[Delivery] = []

    def arrives() -> bool:
        if len(receivers.requests) == 6 and not healthy:
            healthy.append(due(receivers.serve(made.answer())))
        return Delivery.objects.filter(state=State.DELIVERED).exists()

    run(a_sender(board), arrives)

    assert len(receivers.requests) == 7


def test_after_an_outage_others_may_first_record_what_they_have(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_sender(board)
    moments = [1000.0]
    monkeypatch.setattr("webhooks.sender.time.monotonic", lambda: moments[0])
    make_delivery(state=State.SENDING, attempts=1, owner="another-node:7:7", lease_expires_at=LONG_AGO)
    record = results.record

    def failing(reports: Any, *, now: datetime) -> None:
        raise OperationalError("the database is gone")

    monkeypatch.setattr(results, "record", failing)
    assert one._do_turn([], 0, 0, fan_out=True).failed
    monkeypatch.setattr(results, "record", record)

    one._do_turn([], 0, 0, fan_out=True)
    assert Delivery.objects.get().state == State.SENDING

    moments[0] += sender.RECORD_SECONDS
    one._do_turn([], 0, 0, fan_out=True)
    assert Delivery.objects.get().state == State.PENDING


def test_the_sender_beats_while_it_turns_and_no_longer_when_it_is_stuck(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "BEAT_SECONDS", 0.01)
    one = a_sender(board)
    assert board.sender_at == 0

    run(one, lambda: board.sender_at > 0)

    monkeypatch.setattr(sender, "STUCK_SECONDS", -1.0)
    before = board.sender_at
    run(one := a_sender(board))
    assert board.sender_at == before


def test_nothing_is_looked_for_often_while_no_webhook_is_active(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    rest = Sender._rest

    async def noted(self: Sender, turn: sender.Turn) -> None:
        waits.append(sender.IDLE_SECONDS if not turn.is_any_active else sender.QUIET_SECONDS)
        await rest(self, turn)

    monkeypatch.setattr(Sender, "_rest", noted)

    run(a_sender(board), lambda: waits)

    assert set(waits) == {sender.IDLE_SECONDS}


def test_a_file_of_certificates_that_cannot_be_read_ends_the_process(settings: Settings) -> None:
    settings.WEBHOOK_CA_FILE = "/nowhere/ca.pem"

    with pytest.raises(CommandError, match="WEBHOOK_CA_FILE must name a file"):
        call_command("sender")


def _job() -> Any:
    webhook = make_webhook()
    make_delivery(webhook=webhook, message=make_message(), due_at=LONG_AGO)
    (job,) = delivery.claim("a:1:1", limit=1, lease=timedelta(minutes=1), now=datetime.now(UTC))
    return job
