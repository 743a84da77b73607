"""Notices: what a rule is told, in how few mails, and that none is lost whoever fails: a server, a node, a sender."""

import email
import smtplib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core import mail as post
from django.core.exceptions import ValidationError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import Settings

from k1node import notifier
from k1node.events import log
from recovery import notice_mails, notice_rules, notices
from recovery.models import FailingSchedule, NoticeMail, NoticeReader, NoticeRule
from recovery.notice_rules import Kind
from scheduling import schedules
from scheduling.models import Schedule, Task, TaskStatus
from tests.databases import Rival
from tests.factories import NOW, make_schedule, make_task

# On PostgreSQL a reader of the log sees nothing of the transaction it runs in.
pytestmark = pytest.mark.django_db(transaction=True)

ME, OTHER = "node-a", "node-b"
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def mail_server(settings: Settings) -> None:
    settings.EMAIL_HOST = "smtp.example.org"
    settings.DEFAULT_FROM_EMAIL = "K1.Node <node@example.org>"
    settings.K1NODE_URL = "https://k1.example.org"


def make_rule(now: datetime = NOW, **fields: Any) -> NoticeRule:
    """Return an enabled rule about everything usual, as an operator makes it."""
    rule = NoticeRule(**{"name": "ops", "addresses": ["ana@example.org"]} | fields)
    notices.keep(rule, now=now)
    return rule


def fail(
    count: int = 1, *, at: datetime = NOW, schedule: Schedule | None = None, error: str = "exit code 1", **fields: Any
) -> list[Task]:
    """Have so many tasks fail for good, as a settlement does."""
    tasks = [
        make_task(status=TaskStatus.FAILED, finished_at=at, schedule=schedule, last_error=error, **fields)
        for _ in range(count)
    ]
    facts = [("task.failed", {"task_id": task.task_id, "status": "failed", "error": error}) for task in tasks]
    log.publish_many(facts, now=at)
    return tasks


def complete(schedule: Schedule, *, at: datetime) -> Task:
    task = make_task(status=TaskStatus.COMPLETED, finished_at=at, schedule=schedule)
    log.publish("task.completed", {"task_id": task.task_id, "status": "completed"}, now=at)
    return task


def read(now: datetime = NOW, owner: str = ME) -> None:
    while notices.read(owner, now=now):
        pass


def send(now: datetime) -> int:
    """Send all that is due; return how many mails went."""
    count = 0
    while notice_mails.send_next(now=now):
        count += 1
    return count


def tell(now: datetime) -> int:
    read(now)
    return send(now)


def texts() -> list[str]:
    return [str(message.body) for message in post.outbox]


# --- one mail for many --------------------------------------------------------------------------------------------


def test_three_hundred_failures_are_one_mail() -> None:
    make_rule()
    tasks = fail(300)

    sent = [tell(NOW), tell(NOW + 11 * SECOND), tell(NOW + 12 * SECOND)]

    assert sent == [0, 1, 0]
    (message,) = post.outbox
    assert message.subject == "K1.Node: 300 × task failed for good"
    assert (message.to, message.from_email) == (["ana@example.org"], "K1.Node <node@example.org>")
    body = str(message.body)
    assert "20 of these 300:" in body
    assert body.count("/admin/scheduling/task/") == 20
    page = reverse("admin:scheduling_task_change", args=(tasks[0].pk,))
    assert f"https://k1.example.org{page}\n" in body
    assert NoticeMail.objects.get().sent_at == NOW + 11 * SECOND


def test_a_mail_says_what_when_of_which_schedule_and_why(settings: Settings) -> None:
    settings.K1NODE_URL = ""
    rule = make_rule(name="night shift")
    (task,) = fail(schedule=make_schedule(task_id="backup"), error="disk \x1b[31mfull\nand more")

    tell(NOW)
    tell(NOW + 11 * SECOND)

    assert texts() == [
        "From 2026-03-04 05:06:07 UTC to 2026-03-04 05:06:07 UTC:\n\n"
        "       1  task failed for good\n\n"
        f"2026-03-04 05:06:07 UTC  task failed for good: {task.task_id}\n"
        "  schedule backup\n"
        "  disk  [31mfull\n\n"
        "-- \nRule: night shift\n"
    ]
    rule.refresh_from_db()
    assert (rule.last_sent_at, rule.last_error) == (NOW + 11 * SECOND, "")


def test_what_follows_within_the_window_is_collected_into_one_more_mail() -> None:
    make_rule(window_seconds=300)
    fail()
    tell(NOW)
    first = tell(NOW + 10 * SECOND)
    sent = []
    for minute in range(1, 7):
        fail(2, at=NOW + minute * MINUTE)
        sent.append(tell(NOW + minute * MINUTE))

    assert (first, sent) == (1, [0, 0, 0, 0, 0, 1])
    # What came in the sixth minute was read before the mail was sealed, and is in it.
    assert post.outbox[1].subject == "K1.Node: 12 × task failed for good"


def test_after_a_quiet_window_the_next_failure_goes_at_once() -> None:
    make_rule(window_seconds=300)
    fail()
    tell(NOW)
    tell(NOW + 10 * SECOND)
    later = NOW + 10 * MINUTE

    fail(at=later)
    sent = [tell(later), tell(later + 10 * SECOND)]

    assert sent == [0, 1]


def test_a_shorter_window_holds_for_what_is_collected_already() -> None:
    rule = make_rule(window_seconds=86_400)
    fail()
    tell(NOW)
    tell(NOW + 10 * SECOND)
    fail()
    tell(NOW + MINUTE)
    rule.refresh_from_db()

    rule.window_seconds = 60
    notices.keep(rule, now=NOW + MINUTE)

    assert tell(NOW + 2 * MINUTE) == 1


def test_a_mail_has_room_for_every_kind() -> None:
    make_rule()
    fail(50)
    log.publish("breaker.opened", {"breaker_id": "api", "reason": "7 of the last 10 calls failed"}, now=NOW + SECOND)

    tell(NOW)
    tell(NOW + 11 * SECOND)

    (body,) = texts()
    assert post.outbox[0].subject == "K1.Node: 50 × task failed for good, 1 × breaker opened"
    assert "breaker opened: api\n  7 of the last 10 calls failed" in body
    assert body.count("task failed for good: ") == 19


def test_a_dead_letter_is_counted_and_not_shown_beside_its_failure() -> None:
    make_rule()
    make_rule(name="letters", kinds=["dead_letter"])
    (task,) = fail()
    by_hand = make_task(status=TaskStatus.FAILED)
    log.publish("dlq.added", {"task_id": task.task_id, "error_message": "e"}, now=NOW)
    log.publish("dlq.added", {"task_id": by_hand.task_id, "error_message": "e", "by": "ana"}, now=NOW)

    read()

    both, letters = NoticeMail.objects.order_by("rule__name").reverse()
    assert (both.counts, letters.counts) == ({"failed": 1, "dead_letter": 2}, {"dead_letter": 2})
    assert [(sample["kind"], sample["subject"]) for sample in both.samples] == [
        ("failed", task.task_id),
        ("dead_letter", by_hand.task_id),
    ]
    assert [sample["subject"] for sample in letters.samples] == [task.task_id, by_hand.task_id]


# --- which rule is told what --------------------------------------------------------------------------------------

FACTS: dict[Kind, tuple[str, dict[str, Any]]] = {
    Kind.ATTEMPT: ("task.retrying", {"task_id": "a", "status": "scheduled", "error": "e"}),
    Kind.FAILED: ("task.failed", {"task_id": "a", "status": "failed", "error": "e"}),
    Kind.DEAD_LETTER: ("dlq.added", {"task_id": "a", "error_message": "e"}),
    Kind.OPENED: ("breaker.opened", {"breaker_id": "b", "reason": "e"}),
    Kind.CLOSED: ("breaker.closed", {"breaker_id": "b", "reason": "e"}),
}


@pytest.mark.parametrize("kind", FACTS)
def test_a_rule_is_told_what_it_is_about_and_nothing_else(kind: Kind) -> None:
    make_rule(kinds=[kind.value])
    log.publish_many([*FACTS.values(), ("task.completed", {"task_id": "a"}), ("hold.started", {})], now=NOW)

    read()

    mail = NoticeMail.objects.get()
    assert mail.counts == {kind: 1}
    assert (mail.samples[0]["subject"], mail.samples[0]["text"]) == (FACTS[kind][1].get("task_id", "b"), "e")


def test_a_failed_attempt_that_will_be_tried_again_is_told_only_if_asked_for() -> None:
    make_rule()
    log.publish_many(list(FACTS.values()), now=NOW)

    read()

    assert set(NoticeMail.objects.get().counts) == {"failed", "dead_letter", "opened", "closed"}


def test_a_rule_of_one_schedule_hears_of_its_tasks_and_its_breaker_alone() -> None:
    mine = make_schedule(circuit_breaker="default")
    other = make_schedule(circuit_breaker="shared")
    make_rule(name="mine", schedule=mine)
    make_rule(name="other", schedule=other)
    make_rule(name="all")
    fail(schedule=mine)
    fail(2, schedule=other)
    fail(4)
    for breaker in (mine.task_id, "shared", "shared", "foreign"):
        log.publish("breaker.opened", {"breaker_id": breaker}, now=NOW)

    read()

    assert {mail.rule_name: mail.counts for mail in NoticeMail.objects.all()} == {
        "mine": {"failed": 1, "opened": 1},
        "other": {"failed": 2, "opened": 2},
        "all": {"failed": 7, "opened": 4},
    }


def test_a_rule_outlives_its_schedule_and_hears_no_more() -> None:
    schedule = make_schedule()
    make_rule(schedule=schedule)
    Schedule.objects.filter(pk=schedule.pk)._raw_delete("default")
    fail()
    log.publish("breaker.opened", {"breaker_id": schedule.task_id}, now=NOW)

    read()

    assert not NoticeMail.objects.exists()


# --- recoveries ---------------------------------------------------------------------------------------------------


def test_a_schedule_that_completes_after_a_failure_has_recovered_once() -> None:
    schedule = make_schedule(task_id="backup")
    make_rule(kinds=["recovered"])
    fail(schedule=schedule)
    read()
    assert not NoticeMail.objects.exists()

    run = complete(schedule, at=NOW + MINUTE)
    complete(schedule, at=NOW + 2 * MINUTE)
    for _ in range(2):
        read(NOW + 2 * MINUTE)

    mail = NoticeMail.objects.get()
    assert mail.counts == {"recovered": 1}
    (sample,) = mail.samples
    assert (sample["subject"], sample["schedule"]) == (run.task_id, "backup")
    assert sample["text"] == "The run before it failed at 2026-03-04 05:06:07 UTC"
    assert not FailingSchedule.objects.exists()


def test_a_failure_and_its_recovery_read_together_are_both_told() -> None:
    schedule = make_schedule()
    make_rule()
    fail(schedule=schedule)
    complete(schedule, at=NOW + MINUTE)

    read(NOW + MINUTE)

    assert NoticeMail.objects.get().counts == {"failed": 1, "recovered": 1}


def test_completions_are_no_recovery_where_nothing_had_failed_before() -> None:
    schedule, failing, other = make_schedule(), make_schedule(), make_schedule()
    make_rule()
    complete(schedule, at=NOW)
    fail(schedule=failing)
    complete(other, at=NOW + SECOND)
    make_task(status=TaskStatus.CANCELLED, schedule=failing)

    read(NOW + MINUTE)

    assert NoticeMail.objects.get().counts == {"failed": 1}


def test_a_run_that_ended_before_the_failure_is_no_recovery() -> None:
    schedule = make_schedule()
    make_rule()
    slow = make_task(schedule=schedule)
    complete(schedule, at=NOW - SECOND)
    Task.objects.filter(pk=slow.pk).update(status="failed", finished_at=NOW)
    log.publish("task.failed", {"task_id": slow.task_id, "status": "failed", "error": "e"}, now=NOW)

    read(NOW + MINUTE)

    assert NoticeMail.objects.get().counts == {"failed": 1}


def test_only_the_rule_of_the_schedule_hears_that_it_recovered() -> None:
    schedule = make_schedule()
    make_rule(name="mine", schedule=schedule, kinds=["recovered"])
    make_rule(name="other", schedule=make_schedule(), kinds=["recovered"])
    fail(schedule=schedule)
    complete(schedule, at=NOW + MINUTE)

    read(NOW + MINUTE)

    assert NoticeMail.objects.get().rule_name == "mine"


def test_a_schedule_that_was_deleted_is_not_waited_for() -> None:
    schedule = make_schedule()
    make_rule(kinds=["recovered"])
    fail(schedule=schedule)
    read()
    schedules.delete(schedule, "ana", now=NOW)

    read(NOW + MINUTE)

    assert not FailingSchedule.objects.exists()
    assert not NoticeMail.objects.exists()


def test_nobody_remembers_failing_schedules_once_no_rule_asks() -> None:
    rule = make_rule()
    fail(schedule=make_schedule())
    read()

    rule.kinds = ["failed"]
    notices.keep(rule, now=NOW)

    assert not FailingSchedule.objects.exists()


# --- the reader ---------------------------------------------------------------------------------------------------


def test_the_first_enabled_rule_hears_what_comes_and_not_what_was() -> None:
    fail()
    rule = make_rule(enabled=False)
    fail()
    read()

    rule.enabled = True
    notices.keep(rule, now=NOW)
    fail()
    read()

    assert NoticeMail.objects.get().counts == {"failed": 1}


def test_reading_rests_while_no_rule_is_enabled() -> None:
    rule = make_rule()
    rule.enabled = False
    notices.keep(rule, now=NOW)
    fail()

    with CaptureQueriesContext(connection) as queries:
        read()

    assert len(queries) == 2
    assert NoticeReader.objects.get().cursor_id is None


def test_a_rule_that_came_past_the_console_is_noticed() -> None:
    NoticeRule.objects.create(name="ops", addresses=["ana@example.org"])
    fail()
    read()
    fail()
    read()

    NoticeRule.objects.update(enabled=False)
    read()

    assert NoticeMail.objects.get().counts == {"failed": 1}
    assert NoticeReader.objects.get().cursor_id is None


def test_a_quiet_log_is_read_without_a_write() -> None:
    make_rule()
    fail()
    read()

    with CaptureQueriesContext(connection) as queries:
        read(NOW + SECOND)

    assert [query["sql"] for query in queries if not query["sql"].lstrip().startswith("SELECT")] == []
    assert len(queries) == 3


def test_a_busy_log_of_other_events_is_passed_over_in_few_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "WINDOW", 10)
    make_rule()
    log.publish_many([("task.completed", {"task_id": "a"})] * 250, now=NOW)
    fail()

    with CaptureQueriesContext(connection) as queries:
        more = [notices.read(ME, now=NOW) for _ in range(3)]

    assert more == [True, True, False]
    moves = [query["sql"] for query in queries if 'SET "cursor_xid"' in query["sql"]]
    assert len(moves) == 3
    assert NoticeMail.objects.get().counts == {"failed": 1}


def test_one_node_reads_at_a_time_and_another_goes_on_when_it_is_gone() -> None:
    make_rule()
    fail()
    read(owner=ME)
    fail()

    read(NOW + 29 * SECOND, owner=OTHER)
    held = NoticeMail.objects.get().counts
    read(NOW + 31 * SECOND, owner=OTHER)

    assert (held, NoticeMail.objects.get().counts) == ({"failed": 1}, {"failed": 2})
    assert NoticeReader.objects.get().owner == OTHER


def test_a_reader_that_was_away_too_long_adds_nothing_that_another_has_added(
    rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_rule()
    fail(3)
    slowly = notices._notices

    def overtaken(events: Any) -> Any:
        monkeypatch.setattr(notices, "_notices", slowly)
        rival.do(read, NOW + MINUTE, OTHER)
        return slowly(events)

    monkeypatch.setattr(notices, "_notices", overtaken)

    read(owner=ME)

    assert NoticeMail.objects.get().counts == {"failed": 3}


def test_a_reader_that_dies_before_its_commit_is_followed_from_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rule()
    fail(2)
    monkeypatch.setattr(notices, "_add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(owner=ME)
    monkeypatch.undo()

    read(NOW + MINUTE, owner=OTHER)

    assert NoticeMail.objects.get().counts == {"failed": 2}


# --- sending ------------------------------------------------------------------------------------------------------


def test_a_mail_whose_sender_died_is_sent_again_and_can_be_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rule()
    fail()
    read()
    with monkeypatch.context() as patch:
        patch.setattr(notice_mails, "_gone", lambda *_args, **_kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            send(NOW + 11 * SECOND)
    fail(at=NOW + 20 * SECOND)

    soon, late = tell(NOW + 20 * SECOND), tell(NOW + 5 * MINUTE)

    assert (soon, late) == (0, 1)
    first, second = post.outbox
    assert first.extra_headers["Message-ID"].startswith("<notice.")
    assert first.extra_headers["Message-ID"].endswith("@example.org>")
    assert first.message().as_string() == second.message().as_string()
    # What came meanwhile is in the mail after it.
    assert tell(NOW + 10 * MINUTE) == 1
    assert post.outbox[2].extra_headers["Message-ID"] != first.extra_headers["Message-ID"]


def test_a_server_that_fails_delays_a_mail_and_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: object, _messages: object) -> int:
        raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")

    rule = make_rule()
    fail()
    read()
    tries = []
    with monkeypatch.context() as patch:
        patch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", refuse)
        for second in range(10, 610, 5):
            send(NOW + second * SECOND)
            tries.append(NoticeMail.objects.filter(sealed_at__isnull=False).values_list("tries", flat=True)[0])
        fail(40)
        read(NOW + 610 * SECOND)
    rule.refresh_from_db()
    trouble = rule.last_error

    sent = send(NOW + 30 * MINUTE), send(NOW + 34 * MINUTE), send(NOW + 35 * MINUTE)

    assert trouble == "SMTPServerDisconnected: Connection unexpectedly closed"
    assert tries[-1] == 5  # at 10, 40, 100, 220 and 460 seconds
    assert sent == (1, 0, 1)
    assert [message.subject[:10] for message in post.outbox] == ["K1.Node: 1", "K1.Node: 4"]
    rule.refresh_from_db()
    assert rule.last_error == ""


def refusing(monkeypatch: pytest.MonkeyPatch, codes: dict[str, int]) -> list[str]:
    """Have the server refuse these addresses; return the list of those it is asked for."""
    asked: list[str] = []

    def take(_self: object, messages: list[Any]) -> int:
        (address,) = messages[0].to
        asked.append(address)
        if address in codes:
            raise smtplib.SMTPRecipientsRefused({address: (codes[address], b"not\nhere")})
        return 1

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", take)
    return asked


def test_an_address_refused_for_good_is_named_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = make_rule(addresses=["ana@example.org", "gone@example.org"])
    asked = refusing(monkeypatch, {"gone@example.org": 550})
    fail()
    read()

    sent = send(NOW + 11 * SECOND)

    rule.refresh_from_db()
    assert (sent, asked) == (1, ["ana@example.org", "gone@example.org"])
    assert rule.last_error == "gone@example.org: 550 not here"
    assert NoticeMail.objects.get().reached == ["ana@example.org"]


def test_an_address_refused_for_now_is_asked_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rule(addresses=["ana@example.org", "full@example.org"])
    codes = {"full@example.org": 452}
    asked = refusing(monkeypatch, codes)
    fail()
    read()

    first = send(NOW + 11 * SECOND)
    codes.clear()
    second = send(NOW + MINUTE)

    assert (first, second) == (0, 1)
    assert asked == ["ana@example.org", "full@example.org", "full@example.org"]


def test_a_full_mailbox_does_not_keep_the_next_mail_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rule(addresses=["full@example.org", "ana@example.org"])
    asked = refusing(monkeypatch, {"full@example.org": 452})

    for hours in (0, 3):
        at = NOW + timedelta(hours=hours)
        fail(at=at)
        read(at)
        for minutes in range(1, 90):
            send(at + timedelta(minutes=minutes))

    assert asked.count("ana@example.org") == 2
    assert asked.count("full@example.org") == 2 * notice_mails.MOST_TRIES


def test_a_mail_that_is_refused_for_one_address_reaches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rule(addresses=["picky@example.org", "ana@example.org"])
    asked: list[str] = []

    def take(_server: object, messages: list[post.EmailMessage]) -> int:
        (address,) = messages[0].to
        asked.append(address)
        if address == "picky@example.org":
            raise smtplib.SMTPDataError(554, b"5.7.1 rejected by policy")
        return 1

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", take)
    fail()
    read()
    for minutes in range(1, 90):
        send(NOW + timedelta(minutes=minutes))

    assert asked == ["picky@example.org", "ana@example.org"]


def test_a_corrected_address_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = make_rule(addresses=["typo@example.org"])
    asked = refusing(monkeypatch, {"typo@example.org": 550})
    fail()
    read()
    send(NOW + 11 * SECOND)
    rule.refresh_from_db()

    rule.addresses = ["ana@example.org"]
    notices.keep(rule, now=NOW + 12 * SECOND)

    assert send(NOW + 12 * SECOND) == 1
    assert asked == ["typo@example.org", "ana@example.org"]


def test_without_a_server_mails_wait_and_are_not_sealed(settings: Settings) -> None:
    settings.EMAIL_HOST = ""
    make_rule()
    fail()
    tell(NOW)
    fail()

    unsent = tell(NOW + MINUTE)
    settings.EMAIL_HOST = "smtp.example.org"

    assert (unsent, tell(NOW + 2 * MINUTE)) == (0, 1)
    assert post.outbox[0].subject == "K1.Node: 2 × task failed for good"


def test_a_disabled_rule_sends_nothing_until_it_is_enabled_again() -> None:
    rule = make_rule()
    make_rule(name="another", kinds=["closed"])
    fail()
    read()
    rule.enabled = False
    notices.keep(rule, now=NOW)
    fail()

    silent = tell(NOW + MINUTE)
    rule.enabled = True
    notices.keep(rule, now=NOW + MINUTE)

    assert (silent, tell(NOW + 2 * MINUTE)) == (0, 1)
    assert post.outbox[0].subject == "K1.Node: 1 × task failed for good"


def test_two_nodes_do_not_send_one_mail_twice(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    make_rule()
    fail()
    read()
    claim = notice_mails._claim

    def overtaken(mail: NoticeMail, *, now: datetime) -> NoticeMail | None:
        monkeypatch.setattr(notice_mails, "_claim", claim)
        assert rival.do(send, now) == 1
        return claim(mail, now=now)

    monkeypatch.setattr(notice_mails, "_claim", overtaken)

    assert send(NOW + 11 * SECOND) == 0
    assert len(post.outbox) == 1


def test_a_deleted_rule_takes_along_what_it_had_not_sent() -> None:
    rule = make_rule()
    fail()
    tell(NOW)
    tell(NOW + 11 * SECOND)
    fail()
    read(NOW + MINUTE)

    notices.forget(rule)

    (kept,) = NoticeMail.objects.all()
    assert (kept.rule, kept.rule_name, kept.sent_at) == (None, "ops", NOW + 11 * SECOND)
    assert NoticeReader.objects.get().cursor_id is None
    assert send(NOW + 10 * MINUTE) == 0


def test_mails_that_went_are_kept_as_long_as_events() -> None:
    make_rule()
    for days in (0, 6, 8):
        now = NOW + timedelta(days=days)
        fail(at=now)
        tell(now)
        tell(now + 11 * SECOND)

    assert [mail.began_at for mail in NoticeMail.objects.order_by("pk")] == [
        NOW + timedelta(days=6),
        NOW + timedelta(days=8),
    ]


# --- rules and words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "code"),
    [
        ([], "required"),
        ("ana@example.org", "required"),
        (["ana"], "address"),
        ([7], "address"),
        (["ana@example.org\nBcc: x@example.org"], "address"),
        (["ana@example.org", "ANA@example.org"], "twice"),
        ([f"a{number}@example.org" for number in range(21)], "many"),
    ],
)
def test_addresses_that_no_mail_can_go_to_are_refused(addresses: object, code: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        notice_rules.check_addresses(addresses)

    assert refusal.value.code == code


@pytest.mark.parametrize("kinds", [[], "failed", ["failed", "nonsense"]])
def test_kinds_that_nobody_publishes_are_refused(kinds: object) -> None:
    with pytest.raises(ValidationError):
        notice_rules.check_kinds(kinds)


@pytest.mark.parametrize(("tries", "seconds"), [(1, 30), (2, 60), (5, 480), (6, 900), (100_000, 900)])
def test_waits_grow_to_a_quarter_of_an_hour(tries: int, seconds: int) -> None:
    assert notice_rules.wait_after(tries) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (smtplib.SMTPAuthenticationError(535, b"5.7.8 bad\r\n credentials"), "535 5.7.8 bad credentials"),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: [Errno 111] Connection refused"),
        (smtplib.SMTPRecipientsRefused({"a@b.org": (550, b"no")}), "a@b.org: 550 no"),
    ],
)
def test_what_a_server_says_is_one_line(error: Exception, said: str) -> None:
    assert notice_mails.described(error) == said


# --- a real server, and the thread of the clock process -------------------------------------------------------------


class MailServer(socketserver.ThreadingTCPServer):
    """SMTP on the loopback, as much of it as smtplib needs; while it hangs, it takes connections and says nothing."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.messages: list[email.message.Message] = []
        self.hang = threading.Event()
        super().__init__(("127.0.0.1", 0), Conversation)


class Conversation(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        while self.server.hang.is_set():
            time.sleep(0.01)
        self.say(220)
        while line := self.rfile.readline():
            match line.upper().split()[:1]:
                case [b"DATA"]:
                    self.say(354)
                    data = b"".join(iter(self.rfile.readline, b".\r\n"))
                    self.server.messages.append(email.message_from_bytes(data))
                    self.say(250)
                case [b"QUIT"]:
                    self.say(221)
                    return
                case _:
                    self.say(250)

    def say(self, code: int) -> None:
        self.wfile.write(b"%d ok\r\n" % code)


@pytest.fixture
def server(settings: Settings) -> Iterator[MailServer]:
    with MailServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.server_address[1]
        yield server
        server.hang.clear()
        server.shutdown()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the notifier as the clock process does, without its pauses."""
    monkeypatch.setattr(notice_rules, "COLLECT", timedelta(0))
    for name in ("TURN_SECONDS", "BUSY_SECONDS", "TROUBLE_SECONDS"):
        monkeypatch.setattr(notifier, name, 0.01)
    stopping = threading.Event()
    running = notifier.start(stopping)
    yield
    stopping.set()
    running.join(10)


def eventually(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < until, "nothing has come"
        time.sleep(0.01)


def test_a_failure_reaches_its_readers_through_a_real_server(server: MailServer, thread: None) -> None:
    make_rule(addresses=["ana@example.org", "ben@example.org"])

    (task,) = fail(error="disk full: é🙂")

    eventually(lambda: NoticeMail.objects.filter(sent_at__isnull=False).exists())
    assert [message["To"] for message in server.messages] == ["ana@example.org", "ben@example.org"]
    message = server.messages[0]
    assert message["From"] == "K1.Node <node@example.org>"
    assert message["Message-ID"] == NoticeMail.objects.get().message_id
    assert message["Auto-Submitted"] == "auto-generated"
    content = message.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert task.task_id in content.decode()
    assert "disk full: é🙂" in content.decode()


def test_a_server_that_hangs_is_given_up_and_the_thread_goes_on(
    server: MailServer, settings: Settings, thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice_rules, "FIRST_WAIT", timedelta(seconds=0.1))
    settings.EMAIL_TIMEOUT = 0.2
    server.hang.set()
    rule = make_rule()
    fail()

    eventually(lambda: NoticeRule.objects.filter(last_error__contains="timed out").exists())
    fail(5)
    server.hang.clear()

    eventually(lambda: server.messages)
    rule.refresh_from_db()
    eventually(lambda: NoticeMail.objects.filter(sealed_at=None, counts__failed=5).exists())


def test_the_thread_outlives_a_turn_that_fails(
    server: MailServer, monkeypatch: pytest.MonkeyPatch, thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(notices, "read", lambda *_args, **_kwargs: 1 / 0)
        eventually(lambda: "Notices could not be read or sent" in caplog.text)
    make_rule()
    fail()

    eventually(lambda: server.messages)
