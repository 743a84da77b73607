"""Makers of rows: each gives a valid row whatever is left out, so that a test names only what matters to it."""

import json
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from batches.models import Batch
from recovery.fingerprints import fingerprint
from recovery.models import DeadLetter
from scheduling import gates
from scheduling.models import Attempt, Gate, GateKind, RetryPolicy, Schedule, ScheduleType, Task, TaskStatus
from scheduling.outcomes import OutcomeKind
from webhooks import models as webhooks_models
from webhooks import signing_secrets
from webhooks.models import Delivery, Message, Webhook

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)

_numbers = count(1)


def make_policy(**fields: Any) -> RetryPolicy:
    return RetryPolicy.objects.create(**{"name": f"policy-{next(_numbers)}"} | fields)


def make_schedule(**fields: Any) -> Schedule:
    """Return an enabled cron schedule, due every five minutes; not yet planned by the clock."""
    defaults = {
        "task_id": f"schedule-{next(_numbers)}",
        "handler": "python:sleep",
        "schedule_type": ScheduleType.CRON,
        "schedule_expr": "*/5 * * * *",
    }
    return Schedule.objects.create(**defaults | fields)


def make_gate(**fields: Any) -> Gate:
    """Return an open gate without a limit."""
    return Gate.objects.create(**{"kind": GateKind.HOLD, "key": f"gate-{next(_numbers)}"} | fields)


def make_task(**fields: Any) -> Task:
    """Return a queued task that is due; an executing one has a lease, a blocked one a gate in front."""
    defaults: dict[str, Any] = {
        "task_id": f"task-{next(_numbers)}",
        "handler": "python:sleep",
        "due_at": NOW,
        "created_at": NOW,
    }
    match fields.get("status"):
        case TaskStatus.EXECUTING:
            defaults |= {
                "fence": 1,
                "lease_owner": "worker",
                "lease_expires_at": NOW + timedelta(seconds=20),
                "started_at": NOW,
            }
        case TaskStatus.BLOCKED if "blocked_on" not in fields:
            defaults["gate"] = defaults["blocked_on"] = fields.get("gate") or make_gate(waiting=1)
        case TaskStatus.COMPLETED | TaskStatus.FAILED | TaskStatus.SKIPPED | TaskStatus.CANCELLED:
            defaults["finished_at"] = NOW
    return Task.objects.create(**defaults | fields)


def make_attempt(task: Task | None = None, **fields: Any) -> Attempt:
    """Return a completed first attempt that took a second."""
    outcome = fields.get("outcome", OutcomeKind.COMPLETED)
    defaults = {
        "task": task or make_task(),
        "fence": 1,
        "number": 1,
        "outcome": outcome,
        "decision": "complete" if outcome == OutcomeKind.COMPLETED else "fail",
        "worker": "worker",
        "started_at": NOW,
        "finished_at": NOW + timedelta(seconds=1),
        "duration_ms": 1000,
    }
    return Attempt.objects.create(**defaults | fields)


def make_dead_letter(task: Task | None = None, **fields: Any) -> DeadLetter:
    """Return the pending entry of a task that failed with exit code 3."""
    task = task or make_task(status=TaskStatus.FAILED, attempt=5, exit_code=3)
    defaults: dict[str, Any] = {
        "dlq_id": f"dlq-{task.task_id}-1772600767890",
        "task": task,
        "failed_at": NOW,
        "error_code": 3,
        "error_message": "disk full",
        "handler": task.handler,
        "schedule": task.schedule,
        "circuit_breaker": task.circuit_breaker,
    }
    if fields.get("status", DeadLetter.Status.PENDING) != DeadLetter.Status.PENDING:
        defaults |= {"resolved_at": NOW, "resolved_by": "ana"}
    values = defaults | fields
    values.setdefault("fingerprint", fingerprint(values["error_code"], values["error_message"]))
    return DeadLetter.objects.create(**values)


SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def make_batch(**fields: Any) -> Batch:
    """Return a batch without tasks, of a gate that counts none; `total`, `gate` and the counts say otherwise."""
    defaults: dict[str, Any] = {"batch_id": f"batch-{next(_numbers)}", "created_at": NOW}
    counts = {name: fields.pop(name) for name in ("waiting", "in_flight", *gates.FINALS) if name in fields}
    if "gate" not in fields:
        key = fields.get("batch_id", defaults["batch_id"])
        defaults["gate"] = make_gate(kind=GateKind.BATCH, key=key, **counts)
    return Batch.objects.create(**defaults | {"total": sum(counts.values())} | fields)


def make_webhook(
    secret: str = SECRET, next_secret: str = "", headers: dict[str, str] | None = None, **fields: Any
) -> Webhook:
    """Return an active webhook that wants every event; secrets and headers are given as they are read."""
    webhook_id = fields.setdefault("webhook_id", f"wh-{next(_numbers)}")
    sealed = {
        "secret": signing_secrets.sealed(webhook_id, "secret", secret),
        "secret_hint": secret[-4:],
        "next_secret": signing_secrets.sealed(webhook_id, "next_secret", next_secret) if next_secret else "",
        "next_secret_hint": next_secret[-4:],
        "headers": signing_secrets.sealed(webhook_id, "headers", json.dumps(headers)) if headers else "",
        "header_names": list(headers or {}),
    }
    defaults: dict[str, Any] = {
        "name": webhook_id,
        "url": "https://receiver.example/hook",
        "events": ["*"],
        "created_by": "ana",
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Webhook.objects.create(**defaults | sealed | fields)


def make_message(**fields: Any) -> Message:
    """Return the message of a completed task."""
    number = next(_numbers)
    defaults: dict[str, Any] = {
        "message_id": f"wh-evt-{number}",
        "event": "task.completed",
        "occurred_at": NOW,
        "data": '{"task_id": "task-1"}',
    }
    return Message.objects.create(**defaults | fields)


def make_delivery(webhook: Webhook | None = None, message: Message | None = None, **fields: Any) -> Delivery:
    """Return a delivery that is due; one that is being sent has a lease, one that has ended the time of its end."""
    message = message or make_message(**({"event": fields["event"]} if "event" in fields else {}))
    defaults: dict[str, Any] = {
        "delivery_id": f"wh-dlv-{next(_numbers)}",
        "webhook": webhook or make_webhook(),
        "message": message,
        "event": message.event,
        "due_at": NOW,
        "created_at": NOW,
    }
    match fields.get("state"):
        case Delivery.State.SENDING:
            defaults |= {"owner": "sender", "lease_expires_at": NOW + timedelta(seconds=45), "attempts": 1}
        case Delivery.State.DELIVERED | Delivery.State.FAILED | Delivery.State.CANCELLED:
            defaults["finished_at"] = NOW
    return Delivery.objects.create(**defaults | fields)


def make_delivery_attempt(delivery: Delivery | None = None, **fields: Any) -> webhooks_models.Attempt:
    """Return a first attempt that was answered with 200."""
    defaults: dict[str, Any] = {
        "delivery": delivery or make_delivery(state=Delivery.State.DELIVERED),
        "number": 1,
        "started_at": NOW,
        "finished_at": NOW + timedelta(seconds=1),
        "outcome": "delivered",
        "status": 200,
        "url": "https://receiver.example/hooks",
    }
    return webhooks_models.Attempt.objects.create(**defaults | fields)
