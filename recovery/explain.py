"""Why is this task not running? The one reason that holds it now, from the rows alone.

Asked in the order in which one reason hides the others: it has ended, it runs, a person paused it, it is not due, it
waits behind a gate or its breaker; and, of what is queued: everything is held, nobody is there to run it, others come
first, every place is taken.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection

from k1node.lib.admin_display import exact
from k1node.lib.clock_time import since
from recovery import breakers, holds
from recovery.breaker_rules import FAILED, Pin, State
from recovery.models import Breaker, Intervention
from scheduling import gates, nodes, steering
from scheduling.models import FINISHED, Control, Node, Task, TaskStatus

REASONS = (
    "ended",
    "running",
    "claimed",
    "ending",
    "paused",
    "not_due",
    "backoff",
    "blocked",
    "breaker_open",
    "breaker_half_open",
    "breaker_closing",
    "held",
    "no_node",
    "no_workers",
    "behind",
    "resource_limit",
    "no_worker_free",
    "starting",
)
MOST_AHEAD = 1_000  # counted so far; more is said as "more than"


@dataclass(frozen=True, slots=True)
class Explanation:
    """`reason` is one of REASONS, for programs; `message` is a sentence for people; `facts` go with the reason."""

    reason: str
    message: str
    facts: dict[str, Any] = field(default_factory=dict)


def explain(task: Task, *, now: datetime) -> Explanation:
    """Return the one reason why `task` is where it is at `now`; six queries at the most, none over a whole table."""
    if task.status in FINISHED:
        return Explanation("ended", f"It has ended: {task.status}.", {"since": task.finished_at})
    if task.status == TaskStatus.EXECUTING:
        return _held(task, now)
    if task.status == TaskStatus.PAUSED:
        return _paused(task, now)
    if task.status == TaskStatus.SCHEDULED:
        return _not_due(task, now)
    if task.status == TaskStatus.BLOCKED:
        return _parked(task) if steering.is_parked(task) else _blocked(task)
    return _stopped(task) or _queued(task, now)


def _held(task: Task, now: datetime) -> Explanation:
    facts = {"since": task.started_at, "worker": task.lease_owner}
    if task.control in (Control.CANCEL, Control.SKIP):
        return Explanation("ending", f"It is being ended: {task.control_reason or task.control}.", facts)
    if task.paused_at is not None:
        return _paused(task, now)
    if task.started_at is None:
        return Explanation("claimed", "A worker has it in its hands and starts it after a few short tasks.", facts)
    return Explanation("running", "It runs.", facts)


def _paused(task: Task, now: datetime) -> Explanation:
    row = Intervention.objects.filter(task=task, action=Intervention.Action.PAUSE).order_by("-pk").first()
    until = task.paused_until
    facts = {"since": task.paused_at, "until": until, "by": row.performed_by if row else None}
    who = f" by {row.performed_by}" if row else ""
    why = f": {row.reason}" if row and row.reason else ""
    if until is None:
        return Explanation("paused", f"It was paused{who}{why}. It goes on when somebody resumes it.", facts)
    end = f" until {exact(until)}"
    ends = "It goes on by itself then" if until > now else "That is over; the clock resumes it within a second"
    return Explanation("paused", f"It was paused{who}{end}{why}. {ends}.", facts)


def _not_due(task: Task, now: datetime) -> Explanation:
    facts = {"until": task.due_at}
    if task.due_at <= now:
        return Explanation("not_due", "It is due now; the clock moves it to the queue within a second.", facts)
    if task.attempt:
        failed = f"Attempt {task.attempt} failed ({task.last_error or 'no message'})"
        text = f"{failed}; it is tried again at {exact(task.due_at)}."
        return Explanation("backoff", text, {**facts, "attempt": task.attempt})
    return Explanation("not_due", f"It is due at {exact(task.due_at)}.", facts)


def _blocked(task: Task) -> Explanation:
    gate = task.blocked_on
    if gate is None:
        return Explanation("blocked", "It waits for its turn.")
    facts: dict[str, Any] = {"gate": str(gate), "waiting": gate.waiting, "in_flight": gate.in_flight}
    if gate.closed:
        return Explanation("blocked", f"It waits behind a closed gate, {gate}.", facts)
    ahead = gates.in_flight(gate).order_by("pk").values_list("task_id", flat=True).first()
    if ahead is None:
        return Explanation("blocked", "Nothing is before it any more; it is let through within a minute.", facts)
    facts["behind"] = ahead
    return Explanation("blocked", f"It waits until {ahead} has ended.", facts)


def _parked(task: Task) -> Explanation:
    row = Breaker.objects.filter(gate=task.blocked_on_id).first()
    if row is None:
        return Explanation("blocked", "It waits for its turn.")
    return _at_breaker(row)


def _at_breaker(row: Breaker) -> Explanation:
    facts: dict[str, Any] = {"breaker_id": row.breaker_id, "since": row.changed_at}
    name = f"Its circuit breaker, {row.breaker_id},"
    if row.pin == Pin.OPEN:
        facts |= {"until": row.pinned_until, "by": row.pinned_by}
        why = f": {row.pin_reason}" if row.pin_reason else ""
        until = f" It probes at {exact(row.pinned_until)}." if row.pinned_until else " Somebody must reset it."
        return Explanation("breaker_open", f"{name} is held open by {row.pinned_by}{why}.{until}", facts)
    if row.state == State.OPEN:
        facts["until"] = row.open_until
        failed = f"{row.window.count(FAILED)} of the last {len(row.window)} calls failed"
        text = (
            f"{name} is open until {exact(row.open_until)}: {failed}. A few tasks try then; no attempt is spent before."
        )
        return Explanation("breaker_open", text, facts)
    if row.state == State.HALF_OPEN:
        text = f"{name} is half-open: a few tasks try, and it waits for what comes of them."
        return Explanation("breaker_half_open", text, facts)
    return Explanation("breaker_closing", f"{name} has closed, and lets what waited go little by little.", facts)


def _stopped(task: Task) -> Explanation | None:
    """Return what keeps a queued task from being claimed: the hold, or its breaker, which parks it in a moment."""
    if hold := holds.current():
        facts = {"since": hold.since, "until": hold.until, "by": hold.created_by}
        why = f": {hold.reason}" if hold.reason else ""
        until = f" It ends at {exact(hold.until)}." if hold.until else " Somebody must release it."
        return Explanation("held", f"Nothing starts: everything is held by {hold.created_by}{why}.{until}", facts)
    if not task.circuit_breaker:
        return None
    row = Breaker.objects.filter(breaker_id=task.circuit_breaker).first()
    return _at_breaker(row) if row and breakers.door_of(row).stops(task.permit) else None


def _queued(task: Task, now: datetime) -> Explanation:
    live = nodes.live(now=now)
    if not live:
        return Explanation("no_node", "No node is up: no clock has reported within 15 seconds.")
    at_work = [node for node in live if node.workers_beat_at and node.workers_beat_at > now - nodes.LIVE_FOR]
    if not at_work:
        return Explanation("no_workers", "Nodes are up, but none has workers that answer.", {"nodes": len(live)})
    ahead = _ahead(task)
    facts: dict[str, Any] = {"ahead": ahead, "waited_ms": since(max(task.created_at, task.due_at), now)}
    why = _no_place(at_work)
    if ahead:
        count = (
            f"More than {MOST_AHEAD:,} tasks"
            if ahead > MOST_AHEAD
            else f"{ahead:,} {'task' if ahead == 1 else 'tasks'}"
        )
        verb = "start" if ahead != 1 else "starts"
        text = f"{count} of higher priority or longer due {verb} first."
        return Explanation("behind", f"{text} {why[1]}" if why else text, facts)
    if why:
        return Explanation(why[0], f"It is next. {why[1]}", facts)
    return Explanation("starting", "It is next, and a worker is free: it starts within a second.", facts)


def _no_place(at_work: list[Node]) -> tuple[str, str] | None:
    """Return why none of the nodes takes one more task now; None when one does."""
    full = [node for node in at_work if node.running >= min(node.max_concurrent, node.workers)]
    loaded = [node for node in at_work if node.running and _is_loaded(node)]
    if len({node.pk for node in (*full, *loaded)}) < len(at_work):
        return None
    if loaded:
        node = loaded[0]
        text = (
            f"{node.hostname} is at its limits (CPU {node.cpu_percent:g} of {node.max_cpu_percent} %,"
            f" memory {node.memory_percent:g} of {node.max_memory_percent} %) and runs one task at a time."
        )
        return "resource_limit", text
    running = sum(node.running for node in at_work)
    return "no_worker_free", f"Every worker is busy: {running} running."


def _is_loaded(node: Node) -> bool:
    cpu = node.max_cpu_percent < 100 and node.cpu_percent >= node.max_cpu_percent
    return cpu or (node.max_memory_percent < 100 and node.memory_percent >= node.max_memory_percent)


def _ahead(task: Task) -> int:
    """Return how many queued tasks are claimed before this one, MOST_AHEAD + 1 for any more."""
    # The head of the queue in its index, not a condition: that would read on to the queue's end for what is not there.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM scheduling_task WHERE status = 'queued' ORDER BY priority DESC, due_at, id LIMIT %s",
            [MOST_AHEAD + 1],
        )
        head = [pk for (pk,) in cursor.fetchall()]
    if task.pk in head:
        return head.index(task.pk)
    return len(head) if len(head) > MOST_AHEAD else 0
