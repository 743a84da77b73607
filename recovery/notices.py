"""Notices: people hear by e-mail of what failed, was given up, recovered, and of breakers. Here: from the log to mails.

```
event ──(reader)──▶ mail, collecting ──(due: seal)──▶ sealed ──(server takes it)──▶ sent
                        ▲        │                      ▲  │
                        └────────┘ more within          └──┘ failed: again after a wait, same Message-ID
                                   the window
```

| State | Who changes it |
|---|---|
| `NoticeRule` | operators; `last_sent_at` and `last_error` the post (recovery.notice_mails) |
| `NoticeReader`, one row | its lease's holder, conditional on owner and cursor; keep() and forget() begin and end it |
| `NoticeMail` | counts and samples: the reader, only while it collects; from the seal on: the post |
| `FailingSchedule` | the reader: made by a final failure, deleted when a later run of the schedule has completed |

The cursor moves in the transaction that adds to the mails, so no event is lost or counted twice, whichever node dies
when. Every node has a reader; the one with the lease reads, another goes on once that has run out. A rule has at most
one mail that collects and one on its way: the next is not sealed before the one before it has gone.

That a schedule recovered is not read from the log, where completions are nearly everything there is: for each failing
schedule, the runs right after the failed one are looked at.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict

from django.db import connection
from django.db.models import Q

from k1node.events import log
from k1node.events.log import Cursor, LoggedEvent
from k1node.lib import sql
from k1node.lib.admin_display import exact, first_line
from recovery import notice_rules as rules
from recovery.models import FailingSchedule, NoticeMail, NoticeReader, NoticeRule
from recovery.notice_rules import EVENTS, Kind
from scheduling.models import Task

READER = 1
LEASE = timedelta(seconds=30)
WINDOW = 1000  # events passed over by one look
MOST_LOOKS = 10  # in one call
ENOUGH = 500  # events to work on in one transaction
SAMPLES = 20  # of each kind in a mail; it shows as many of all
MOST_ERROR = 300  # characters
LATER_RUNS = 100  # of a failing schedule, looked at for one that completed
EDITABLE = ("name", "enabled", "addresses", "kinds", "schedule", "window_seconds")
KIND_OF = {EVENTS[kind]: kind for kind in Kind if kind is not Kind.RECOVERED}


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that rules may tell: of a task (`task` is its key, None if its row is gone) or of a breaker."""

    kind: Kind
    at: datetime
    subject: str  # the id of the task or the breaker
    text: str = ""
    task: int | None = None
    schedule: int | None = None
    schedule_id: str = ""
    ended_at: datetime | None = None
    follows_failure: bool = False  # a dead letter that was not added by hand: the failure is a notice too


class Sample(TypedDict):
    kind: str
    at: str  # ISO 8601
    subject: str
    schedule: str
    text: str
    task: int | None


# --- operators --------------------------------------------------------------------------------------------------


def keep(rule: NoticeRule, *, now: datetime) -> None:
    """Save a rule as an operator wants it; the first enabled one has the log read from here on."""

    def work() -> None:
        reader = _locked_reader()
        rule.save(update_fields=None if rule._state.adding else EDITABLE)
        due_at = rules.due(rule.window_seconds, rule.last_sent_at, now=now)
        NoticeMail.objects.filter(rule=rule, sealed_at=None).update(due_at=due_at)
        if rule.last_error:
            # It may have been an address, so its mail is tried again at once.
            NoticeMail.objects.filter(rule=rule, sealed_at__isnull=False, sent_at=None).update(due_at=now)
        _begin_or_rest(reader)

    sql.in_transaction(work)


def forget(rule: NoticeRule) -> None:
    """Delete a rule with all it has not sent yet; the record of what it sent stays."""

    def work() -> None:
        reader = _locked_reader()
        if NoticeRule.objects.select_for_update().filter(pk=rule.pk).first() is None:
            return
        NoticeMail.objects.filter(rule=rule, sent_at=None).delete()
        rule.delete()
        _begin_or_rest(reader)

    sql.in_transaction(work)


def _locked_reader() -> NoticeReader:
    NoticeReader.objects.bulk_create([NoticeReader(pk=READER)], ignore_conflicts=True)
    return NoticeReader.objects.select_for_update().get(pk=READER)


def _begin_or_rest(reader: NoticeReader) -> None:
    """Have the locked reader begin at the end of the log, or rest, as the rules want it."""
    wanted = list(NoticeRule.objects.filter(enabled=True).values_list("kinds", flat=True))
    if wanted and reader.cursor_id is None:
        end = log.end()
        NoticeReader.objects.filter(pk=READER).update(cursor_xid=end.xid, cursor_id=end.id)
    elif not wanted:
        NoticeReader.objects.filter(pk=READER).update(cursor_xid=None, cursor_id=None)
    if not any(Kind.RECOVERED in kinds for kinds in wanted):
        FailingSchedule.objects.all().delete()  # nobody would keep them up to date


# --- the reader -------------------------------------------------------------------------------------------------


def read(owner: str, *, now: datetime) -> bool:
    """Read on in the log, if there are rules and no other node reads; say whether there is more to read now."""
    wanting = list(NoticeRule.objects.filter(enabled=True).select_related("schedule"))
    reader = NoticeReader.objects.filter(pk=READER).first()
    if bool(wanting) != (reader is not None and reader.cursor_id is not None):
        # Only where rows were changed past keep(). The rules are read again under the lock.
        sql.in_transaction(lambda: _begin_or_rest(_locked_reader()))
        return False
    if reader is None or not wanting or not _hold(reader, owner, now=now):
        return False
    kinds = {Kind(kind) for rule in wanting for kind in rule.kinds if kind in Kind.values}
    start = Cursor(reader.cursor_xid or 0, reader.cursor_id or 0)
    events, end, more = _next(start, {EVENTS[kind] for kind in kinds})
    if end != start:
        notices = _notices(events)

        def work() -> None:
            moved = NoticeReader.objects.filter(
                pk=READER, owner=owner, cursor_xid=start.xid, cursor_id=start.id
            ).update(cursor_xid=end.xid, cursor_id=end.id)
            if moved:
                if Kind.RECOVERED in kinds:
                    _note_failing(notices)
                _collect(notices, wanting, now=now)

        sql.in_transaction(work)
        if Kind.RECOVERED in kinds:
            # Only here: a run that completed has moved the log's end too.
            _look_for_recoveries(wanting, now=now)
    return more


def _hold(reader: NoticeReader, owner: str, *, now: datetime) -> bool:
    """Say whether `owner` is the one that reads; written only every half lease."""
    expires = reader.lease_expires_at
    if reader.owner == owner and expires is not None and expires - now > LEASE / 2:
        return True
    free = Q(owner=owner) | Q(lease_expires_at=None) | Q(lease_expires_at__lt=now)
    return bool(NoticeReader.objects.filter(free, pk=READER).update(owner=owner, lease_expires_at=now + LEASE))


def _next(cursor: Cursor, names: Collection[str]) -> tuple[list[LoggedEvent], Cursor, bool]:
    """Return the next events of these names, the cursor behind them, and whether more may follow at once."""
    found: list[LoggedEvent] = []
    for _ in range(MOST_LOOKS):
        events, end = log.read_named(cursor, names, WINDOW)
        if end == cursor:
            return found, cursor, False
        found += events
        cursor = end
        if len(found) >= ENOUGH:
            break
    return found, cursor, True


def _notices(events: Sequence[LoggedEvent]) -> list[Notice]:
    ids = {event.data["task_id"] for event in events if "task_id" in event.data}
    tasks: dict[str, Any] = {}
    if ids:
        rows = Task.objects.filter(task_id__in=ids).values_list(
            "task_id", "pk", "schedule_id", "schedule__task_id", "finished_at"
        )
        tasks = {task_id: (pk, schedule, name or "", at) for task_id, pk, schedule, name, at in rows}
    notices = []
    for event in events:
        kind, data = KIND_OF[event.name], event.data
        if kind in (Kind.OPENED, Kind.CLOSED):
            notices.append(
                Notice(kind, event.occurred_at, str(data.get("breaker_id", "")), one_line(data.get("reason")))
            )
        else:
            task_id = str(data.get("task_id", ""))
            text = one_line(data.get("error") or data.get("error_message"))
            pk, schedule, name, ended_at = tasks.get(task_id, (None, None, "", None))
            follows = kind is Kind.DEAD_LETTER and "by" not in data
            notices.append(
                Notice(kind, event.occurred_at, task_id, text, pk, schedule, name, ended_at, follows_failure=follows)
            )
    return notices


def one_line(text: object) -> str:
    """Return the first line of an error, without what a terminal or a mail would take for a command."""
    plain = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in str(text or ""))
    return first_line(plain, MOST_ERROR)


# --- collecting -------------------------------------------------------------------------------------------------


def _collect(notices: Sequence[Notice], wanting: Iterable[NoticeRule], *, now: datetime) -> None:
    """Add notices to the mails of the rules that want them; needs a transaction."""
    told = {rule.pk: found for rule in wanting if (found := [each for each in notices if _wants(rule, each)])}
    if not told:
        return
    # One may be gone by now, or disabled.
    existing = NoticeRule.objects.select_for_update().filter(pk__in=told, enabled=True).order_by("pk")
    at_hand = list(existing)
    collecting = {
        mail.rule_id: mail
        for mail in NoticeMail.objects.select_for_update().filter(rule__in=at_hand, sealed_at=None).order_by("pk")
    }
    for rule in at_hand:
        found = told[rule.pk]
        mail = collecting.get(rule.pk) or NoticeMail(
            rule=rule,
            rule_name=rule.name,
            began_at=found[0].at,
            due_at=rules.due(rule.window_seconds, rule.last_sent_at, now=now),
        )
        for notice in found:
            _add(mail, notice)
        mail.began_at = min(mail.began_at, *(notice.at for notice in found))
        mail.ended_at = max(filter(None, (mail.ended_at, *(notice.at for notice in found))))
        mail.save()


def _wants(rule: NoticeRule, notice: Notice) -> bool:
    if notice.kind not in rule.kinds:
        return False
    if rule.schedule_id is None:
        return True
    if notice.kind not in (Kind.OPENED, Kind.CLOSED):
        return notice.schedule == rule.schedule_id
    if rule.schedule is None:  # deleted
        return False
    return notice.subject == rule.schedule.breaker_name


def _add(mail: NoticeMail, notice: Notice) -> None:
    mail.counts[notice.kind] = mail.counts.get(notice.kind, 0) + 1
    if notice.follows_failure and Kind.FAILED in mail.counts:
        return  # counted, and not shown twice
    # The first ones: what failed first tells most about why.
    if sum(sample["kind"] == notice.kind for sample in mail.samples) < SAMPLES:
        mail.samples.append(
            Sample(
                kind=notice.kind,
                at=notice.at.isoformat(),
                subject=notice.subject,
                schedule=notice.schedule_id,
                text=notice.text,
                task=notice.task,
            )
        )


# --- recoveries -------------------------------------------------------------------------------------------------

RECOVERED = f"""
    SELECT id, schedule_id, task_id, failed_at, later FROM (
        SELECT f.id, f.schedule_id, f.task_id, f.failed_at,
            EXISTS (SELECT 1 FROM scheduling_schedule AS s WHERE s.id = f.schedule_id) AS known,
            (SELECT run.id FROM (
                SELECT t.id, t.status, t.finished_at FROM scheduling_task AS t
                WHERE t.schedule_id = f.schedule_id AND t.id > f.task_id ORDER BY t.id LIMIT {LATER_RUNS}
            ) AS run WHERE run.status = 'completed' AND run.finished_at > f.failed_at ORDER BY run.id LIMIT 1) AS later
        FROM recovery_failingschedule AS f
    ) AS failing WHERE later IS NOT NULL OR NOT known ORDER BY id LIMIT 100
"""


def _note_failing(notices: Iterable[Notice]) -> None:
    """Remember the schedules whose run has failed for good, with the latest such run."""
    failed = {
        notice.schedule: FailingSchedule(
            schedule_id=notice.schedule, task_id=notice.task, failed_at=notice.ended_at or notice.at
        )
        for notice in notices
        if notice.kind is Kind.FAILED and notice.schedule is not None and notice.task is not None
    }
    FailingSchedule.objects.bulk_create(
        failed.values(),
        update_conflicts=True,
        unique_fields=["schedule"],
        update_fields=["task", "failed_at"],
    )


def _look_for_recoveries(wanting: Sequence[NoticeRule], *, now: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(RECOVERED)
        found = cursor.fetchall()
    if not found:
        return
    runs = Task.objects.select_related("schedule").in_bulk([later for *_, later in found if later is not None])

    def work() -> None:
        notices = []
        for pk, schedule, task, failed_at, later in found:
            # Whoever deletes the row tells it; a failure since then has changed it, and nothing has recovered.
            ended, _ = FailingSchedule.objects.filter(pk=pk, task_id=task).delete()
            run = runs.get(later)
            if ended and run is not None and run.schedule is not None:
                text = f"The run before it failed at {exact(sql.moment(failed_at))}"
                notices.append(
                    Notice(
                        Kind.RECOVERED,
                        run.finished_at or now,
                        run.task_id,
                        text,
                        run.pk,
                        schedule,
                        run.schedule.task_id,
                    )
                )
        _collect(notices, wanting, now=now)

    sql.in_transaction(work)
