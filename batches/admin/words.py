"""How batches read on the console's pages."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from batches.models import Batch
from batches.progress import IN_PROGRESS, PACE_FROM, PAUSED, SUBMITTED, Progress
from k1node.audit.models import AuditRecord
from k1node.lib import admin_display as display
from k1node.operations.models import Operation

STATUSES = {
    SUBMITTED: "submitted",
    IN_PROGRESS: "in progress",
    PAUSED: "paused",
    Batch.Ended.COMPLETED: "completed",
    Batch.Ended.COMPLETED_WITH_FAILURES: "completed with failures",
    Batch.Ended.FAILED: "failed",
    Batch.Ended.CANCELLED: "cancelled",
}
# In the order of the bar. Each has a height and a pattern of its own: it is not told by its colour alone.
PARTS = {
    "completed": "completed",
    "failed": "failed",
    "skipped": "skipped",
    "cancelled": "cancelled",
    "in_progress": "running",
    "waiting": "waiting",
}
LEAST = 0.8  # percent of the bar's width that one task has at the least: one failure among thousands is seen
HEIGHT = 16
DONE = {
    "batch.submitted": "Submitted",
    "batch.added": "Added tasks",
    "batch.closed": "Closed to more tasks",
    "batch.paused": "Paused",
    "batch.resumed": "Resumed",
    "batch.cancelled": "Cancelled",
    "batch.retried": "Retried what had failed",
}


def badge_of(progress: Progress) -> SafeString:
    """Return the status of a batch."""
    return display.badge(f"batch {progress.status}", STATUSES[progress.status])


def tasks(number: int) -> str:
    """Return `1 task`, `10,000 tasks`."""
    return f"{number:,} task{'' if number == 1 else 's'}"


def verb(number: int, one: str, many: str) -> str:
    return one if number == 1 else many


# --- the bar ----------------------------------------------------------------------------------------------------


def numbers(progress: Progress) -> list[tuple[str, int]]:
    """Return the words of the bar's parts and how many tasks each has."""
    return [(word, int(getattr(progress, name))) for name, word in PARTS.items()]


def bar(progress: Progress, key: str) -> SafeString:
    """Return how far a batch has come as a picture; `key` tells it from the other bars of a page."""
    counts = dict(numbers(progress))
    said = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count) or "none yet"
    x, drawn = 0.0, []
    for word, width in _widths(counts).items():
        if width and word != "waiting":
            drawn.append(_part(word, f"{x:.2f}%", f"{width:.2f}%", key))
        x += width
    return format_html(
        '<svg class="k1-bar-of-tasks" width="100%" height="{}" role="img" aria-label="{}: {}">{}{}</svg>',
        HEIGHT,
        f"Of {tasks(progress.total)}",
        said,
        _patterns(key),
        format_html_join("", "{}", ((part,) for part in drawn)),
    )


def swatch(word: str, key: str) -> SafeString:
    """Return what a part of the bar looks like, for its legend."""
    return format_html(
        '<svg class="k1-part" width="{0}" height="{0}" aria-hidden="true">{1}</svg>',
        HEIGHT,
        _part(word, "0", "100%", key),
    )


def _part(word: str, x: str, width: str, key: str) -> SafeString:
    top, height = {"skipped": (8, 8), "cancelled": (11, 5), "waiting": (0, HEIGHT)}.get(word, (0, HEIGHT))
    rect = '<rect class="k1-part-{}" x="{}" y="{}" width="{}" height="{}"></rect>'
    shape = format_html(rect, word, x, top, width, height)
    if word not in ("failed", "running"):
        return shape
    over = '<rect fill="url(#{}-{})" x="{}" y="{}" width="{}" height="{}"></rect>'
    return shape + format_html(over, key, word, x, top, width, height)


def _patterns(key: str) -> SafeString:
    return format_html(
        '<defs><pattern id="{0}-failed" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<path class="k1-part-line" d="M-1 1l2-2M0 6l6-6M5 7l2-2"></path></pattern>'
        '<pattern id="{0}-running" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<path class="k1-part-line" d="M3 0v6"></path></pattern></defs>',
        key,
    )


def _widths(counts: dict[str, int]) -> dict[str, float]:
    """Return the percent of the width of each part; what the small ones have more is taken from the largest."""
    total = sum(counts.values())
    if not total:
        return dict.fromkeys(counts, 0.0)
    widths = {word: max(LEAST, 100 * count / total) if count else 0.0 for word, count in counts.items()}
    widths[max(widths, key=widths.__getitem__)] -= sum(widths.values()) - 100
    return widths


# --- in a list --------------------------------------------------------------------------------------------------


def in_short(batch: Batch) -> str:
    """Return how many tasks a batch has, and what is special about it."""
    said = [tasks(batch.total)]
    if not batch.parallel:
        said.append("one by one")
    elif batch.max_concurrent is not None:
        said.append(f"{batch.max_concurrent:,} at a time")
    if batch.fail_fast:
        said.append("fails fast")
    if batch.open:
        said.append("open")
    if batch.round > 1:
        said.append(f"round {batch.round}")
    return ", ".join(said)


def standing(batch: Batch, progress: Progress, now: datetime) -> SafeString:
    """Return the status of a batch and, below it, who has paused or cancelled it."""
    badge = badge_of(progress)
    if progress.status == PAUSED and batch.paused_at is not None:
        return display.two_lines(badge, f"by {batch.paused_by or 'somebody'}, {display.relative(batch.paused_at, now)}")
    if batch.cancelled_at is not None:
        return display.two_lines(badge, f"by {batch.cancelled_by or 'somebody'}")
    return badge


def in_figures(progress: Progress) -> str:
    """Return `4,213 of 10,000 ended, 12 failed, 8 running`."""
    rest = counted((word, count) for word, count in numbers(progress) if word in ("failed", "running"))
    return f"{progress.ended:,} of {progress.total:,} ended{', ' if rest else ''}{rest}"


def percent(progress: Progress) -> str:
    """Return `41 % have ended`; nothing for a batch without tasks."""
    return f"{progress.percent} % {'has' if progress.total == 1 else 'have'} ended" if progress.total else ""


# --- what is going on -------------------------------------------------------------------------------------------


def how(batch: Batch) -> str:
    """Return in which order and how many at the same time."""
    if not batch.parallel:
        return "One by one, in the order in which they were given"
    if batch.max_concurrent is not None:
        return f"At most {batch.max_concurrent:,} at the same time"
    return "As many at the same time as the nodes have room for"


def on_failure(batch: Batch) -> str:
    """Return what a failure does to the others."""
    if not batch.fail_fast:
        return "The others go on"
    if batch.fail_fast_running == Batch.FailFastRunning.CANCEL:
        return "The first one that fails for good ends the batch: what waits is cancelled, what runs is ended, too"
    return "The first one that fails for good ends the batch: what waits is cancelled, what runs may finish"


def counted(pairs: Iterable[tuple[str, int]]) -> str:
    """Return `12 failed, 3 skipped`, without what is zero."""
    return ", ".join(f"{count:,} {word}" for word, count in pairs if count)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a batch beside its row.

    `ends_at`: about when; `retrying`: how its retry stands; `idle`: why nothing of it runs, and whether somebody could
    see to it.
    """

    now: datetime
    ends_at: datetime | None = None
    retrying: str = ""
    idle: str = ""
    is_stuck: bool = False
    why_paused: str = ""


def going_on(batch: Batch, progress: Progress, known: Known) -> tuple[str, str]:
    """Return a sentence or two for somebody who has just been woken, and before it the tone of them."""
    if progress.status in Batch.Ended.values:
        return _ended(batch, progress)
    if batch.cancelled_at is not None:
        return (
            "off",
            f"{_who(batch.cancelled_by)} has cancelled it. {_runs(progress)}, and {_is(progress)} being ended.",
        )
    if batch.gate.spent and progress.failed and not known.retrying:
        ending = batch.fail_fast_running == Batch.FailFastRunning.CANCEL
        rest = f"and {_is(progress)} being ended" if ending else "and may finish"
        then = f" {_runs(progress)}, {rest}." if progress.in_progress else ""
        return "bad", f"A task has failed for good, so nothing further starts. {_so_far(progress)}{then}"
    if progress.status == PAUSED:
        return "pause", _paused(batch, progress, known)
    if not progress.total:
        return "off", "Nothing is in it yet. It is open: it waits for tasks."
    if progress.status == SUBMITTED:
        idle = f" {known.idle}" if known.idle else ""
        return ("warn" if known.is_stuck else "off"), f"Nothing has started yet, {_waits(progress)}.{idle}"
    return _in_progress(batch, progress, known)


def _ended(batch: Batch, progress: Progress) -> tuple[str, str]:
    took = ""
    if batch.ended_at is not None and batch.started_at is not None and batch.round == 1:
        took = f" It took {display.duration((batch.ended_at - batch.started_at).total_seconds() * 1000)}."
    finals = counted(numbers(progress)) or "it had no tasks"
    match progress.status:
        case Batch.Ended.COMPLETED if progress.total and progress.completed == progress.total:
            said = f"All of its {tasks(progress.total)} have" if progress.total > 1 else "Its one task has"
            return "ok", f"{said} completed.{took}"
        case Batch.Ended.COMPLETED:
            return "ok", f"It has ended: {finals}.{took}"
        case Batch.Ended.CANCELLED:
            why = f": {batch.cancel_reason}" if batch.cancel_reason else ""
            return "off", f"{_who(batch.cancelled_by)} has cancelled it{why}. In the end: {finals}."
        case Batch.Ended.FAILED if batch.fail_fast and progress.failed:
            return "bad", f"It has failed, because a task has: {finals}."
        case Batch.Ended.FAILED:
            return "bad", f"It has failed, for none of its tasks has completed: {finals}."
    return "warn", f"It has ended, but not with all it had to do: {finals}.{took}"


def _in_progress(batch: Batch, progress: Progress, known: Known) -> tuple[str, str]:
    if progress.ended == progress.total:
        if known.retrying:
            return "run", known.retrying
        return "warn", f"All of the {tasks(progress.total)} that it has by now have ended. It ends once it is closed."
    said = [_so_far(progress)]
    if known.retrying:
        said.append(known.retrying)
    if progress.in_progress:
        rest = f", {_waits(progress)}" if progress.waiting else ""
        said.append(f"{_runs(progress)}{rest}.")
    else:
        said.append(f"Nothing of it runs at the moment, {_waits(progress)}.")
        said.append(known.idle)
    if known.ends_at is not None:
        said.append(f"It ends about {clock_time(known.ends_at, known.now)}.")
    elif batch.open:
        said.append("It is open: more tasks may come.")
    return ("warn" if known.is_stuck else "run"), " ".join(each for each in said if each)


def _paused(batch: Batch, progress: Progress, known: Known) -> str:
    since = display.relative(batch.paused_at, known.now) if batch.paused_at else ""
    running = f" {_runs(progress)}, and may finish." if progress.in_progress else ""
    wait = f" {_waits(progress).capitalize()} until somebody resumes it." if progress.waiting else ""
    retrying = f" {known.retrying}" if known.retrying else ""
    why = f", saying: {known.why_paused.rstrip('.')}" if known.why_paused else ""
    who = _who(batch.paused_by)
    return f"{who} has paused it, {since}{why}. Nothing further starts.{running}{wait}{retrying}"


def _so_far(progress: Progress) -> str:
    failed = f", {progress.failed:,} of them failed" if progress.failed else ""
    return f"{progress.ended:,} of {tasks(progress.total)} {verb(progress.ended, 'has', 'have')} ended{failed}."


def _runs(progress: Progress) -> str:
    count = progress.in_progress
    return f"{tasks(count)} {verb(count, 'runs', 'run')}" if count else "Nothing of it runs"


def _is(progress: Progress) -> str:
    return verb(progress.in_progress, "is", "are")


def _waits(progress: Progress) -> str:
    return f"{tasks(progress.waiting)} {verb(progress.waiting, 'waits', 'wait')}"


def _who(name: str) -> str:
    return name or "Somebody"


def retrying(job: Operation | None) -> str:
    """Return how far the retry of what has failed has come; nothing if there is none that goes on."""
    if job is None or job.state not in (Operation.State.RUNNING, Operation.State.STOPPED):
        return ""
    refused = f", {job.refused:,} of them refused" if job.refused else ""
    if job.state == Operation.State.STOPPED:
        return f"The retry of what had failed has stopped after {job.position:,} of {tasks(job.total)}: {job.said}."
    return f"What had failed is retried: {job.position:,} of {tasks(job.total)} so far{refused}."


# --- when -------------------------------------------------------------------------------------------------------


def no_end(batch: Batch, progress: Progress) -> str:
    """Return why nobody can say when a batch ends that goes on."""
    if batch.paused_at is not None:
        return "not while it is paused"
    if batch.open:
        return "not before it is closed"
    return "within seconds" if batch.cancelled_at is not None or progress.ended == progress.total else "unknown"


def clock_time(at: datetime, now: datetime) -> str:
    """Return `03:20 UTC, in 12 min`; with the day if that is another one."""
    shown = at.astimezone(UTC)
    day = "" if shown.date() == now.astimezone(UTC).date() else f"{shown:%Y-%m-%d} "
    return f"{day}{shown:%H:%M} UTC, {display.relative(at, now)}"


def paced_end(batch: Batch, progress: Progress, slots: int, now: datetime) -> datetime | None:
    """Return when a batch ends at the pace it has, None before there is one: what a list can tell without a query."""
    left = progress.total - progress.ended
    going = progress.status == IN_PROGRESS and not batch.open and batch.cancelled_at is None
    if not going or not left or batch.paced_at is None:
        return None
    at_once = 1 if not batch.parallel else min(slots, batch.max_concurrent or slots)
    ran = progress.completed + progress.failed - batch.paced_from
    return now + (now - batch.paced_at) / ran * left if ran >= max(PACE_FROM, 2 * at_once) else None


# --- what people did --------------------------------------------------------------------------------------------


def changed(record: AuditRecord) -> str:
    """Return how many tasks something that was done to a batch was about."""
    after = record.after or {}
    number = next((after[name] for name in ("total", "added", "cancelled", "tasks") if name in after), None)
    return tasks(number) if isinstance(number, int) else ""
