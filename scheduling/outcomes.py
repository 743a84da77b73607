"""What one run of a handler gave: plain values that execution returns and decisions read."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scheduling.output import BoundedOutput

EXIT_TIMEOUT = 124
EXIT_LOST = 137
EXIT_PYTHON_EXCEPTION = 1


class OutcomeKind(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    LOST = "lost"  # its worker died or its lease ran out
    DRAINED = "drained"  # the node stopped before it could finish
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`exit_code` is the process's own, 128 + signal, 124 for a timeout, 137 for a lost lease, 1 for an exception.

    It is None where nothing ran to an end (drained, cancelled before a start). `error` is one readable
    paragraph for people, empty on success. `value` is what a Python handler returned, already plain JSON.
    `output` is what has not been stored yet. `duration_ms` leaves out the time for which the run was paused.
    """

    kind: OutcomeKind
    started_at: datetime
    finished_at: datetime
    duration_ms: int
    exit_code: int | None = None
    error: str = ""
    value: object = None
    output: BoundedOutput | None = None


class Action(StrEnum):
    COMPLETE = "complete"
    RETRY = "retry"  # again after a wait; the attempt is spent
    FAIL = "fail"  # final; the attempt is spent
    AGAIN = "again"  # back to the queue; nothing is spent
    CANCEL = "cancel"  # final, asked for
    SKIP = "skip"  # final, asked for


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from an outcome. `due_at` is given for RETRY alone; `note` is why a retry was not made."""

    action: Action
    spent: bool
    due_at: datetime | None = None
    note: str = ""
