"""Retry policies as operators steer them, each change with its record: who, when, why, before and after.

A policy is never deleted: millions of kept tasks may name it, and no index says which. It is retired instead: nothing
new may name it, the tasks that do go on with it, and it can be restored. While a schedule names it, it cannot be
retired; whoever writes a schedule holds the policy's row until the commit, so the two never pass each other.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count

from k1node.lib import sql
from k1node.lib.errors import Conflict, Detail, NotFound
from recovery import records
from recovery.models import Intervention
from recovery.records import By
from scheduling import policies
from scheduling.models import RetryPolicy, Schedule

Action = Intervention.Action


class PolicyNameTaken(Conflict):
    """A retry policy with this name exists already"""

    def __init__(self, row: RetryPolicy) -> None:
        what = "It is retired: restore it, or choose another name" if row.retired else "Choose another name"
        super().__init__(
            f"A retry policy with this name exists already: {row.name}",
            details=(Detail("name", f"'{row.name}' is taken", what),),
        )


class PolicyRefuses(Conflict):
    """The present state of the retry policy does not allow this"""


def create(name: str, values: Mapping[str, Any], by: By, *, now: datetime) -> RetryPolicy:
    """Add a policy; `values` are any of its figures. Raises FieldInvalid or PolicyNameTaken."""
    policies.check_name(name)
    row = RetryPolicy(name=name, **values)
    policies.check_figures(_figures(row))

    def work() -> RetryPolicy:
        try:
            with transaction.atomic():
                row.save(force_insert=True)
        except IntegrityError:
            found = RetryPolicy.objects.filter(pk=name).first()
            if found is None:
                raise
            raise PolicyNameTaken(found) from None
        records.record(Action.CONFIGURE, by, {}, _figures(row), policy=name, now=now)
        return row

    return sql.in_transaction(work)


def configure(name: str, values: Mapping[str, Any], by: By, *, now: datetime) -> RetryPolicy:
    """Change figures of a policy; workers know them within five seconds. `retired` false restores one.

    Raises FieldInvalid and NotFound.
    """

    def work() -> RetryPolicy:
        row = _locked(name)
        before = _facts(row)
        if all(before[key] == value for key, value in values.items()):
            return row
        for key, value in values.items():
            setattr(row, key, value)
        policies.check_figures(_figures(row))
        row.save(update_fields=tuple(values))
        records.record(Action.CONFIGURE, by, before, _facts(row), policy=name, now=now)
        return row

    return sql.in_transaction(work)


def retire(name: str, by: By, *, now: datetime) -> RetryPolicy:
    """Let nothing new name a policy. Raises PolicyRefuses and NotFound."""

    def work() -> RetryPolicy:
        row = _locked(name)
        if name in policies.BUILT_IN:
            raise PolicyRefuses("It is built in and cannot be retired; its figures can be changed")
        if row.retired:
            raise PolicyRefuses("It is retired already")
        named = Schedule.objects.filter(retry_policy=name).order_by("task_id").values_list("task_id", flat=True).first()
        if named is not None:
            raise PolicyRefuses(f"The schedule '{named}' names it: give that another policy first")
        row.retired = True
        row.save(update_fields=("retired",))
        records.record(Action.DELETE, by, {"retired": False}, {"retired": True}, policy=name, now=now)
        return row

    return sql.in_transaction(work)


def restore(name: str, by: By, *, now: datetime) -> RetryPolicy:
    """Let what is new name a retired policy again. Raises PolicyRefuses and NotFound."""

    def work() -> RetryPolicy:
        if not _locked(name).retired:
            raise PolicyRefuses("It is not retired")
        return configure(name, {"retired": False}, by, now=now)

    return sql.in_transaction(work)


def schedules_of(rows: Sequence[RetryPolicy]) -> dict[str, int]:
    """Return how many schedules name each of the policies; those that none names are left out."""
    named = Schedule.objects.filter(retry_policy__in=[row.pk for row in rows]).order_by()
    return dict(named.values_list("retry_policy_id").annotate(Count("pk")))


def _locked(name: str) -> RetryPolicy:
    rows = RetryPolicy.objects.filter(pk=name)
    row = (rows.select_for_update(no_key=True) if sql.is_postgresql() else rows).first()
    if row is None:
        raise NotFound()
    return row


def _figures(row: RetryPolicy) -> dict[str, Any]:
    return {name: getattr(row, name) for name in policies.FIGURES}


def _facts(row: RetryPolicy) -> dict[str, Any]:
    return _figures(row) | {"retired": row.retired}
