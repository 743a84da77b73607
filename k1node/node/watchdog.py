"""Whether a cluster of workers still works: a pure judgement over what several looks at its board have shown.

django-q2 can stop without a word: a worker killed while it waits holds the queue's lock for ever, a killed sentinel
leaves its children behind, a worker killed while it reports blocks the result queue. From outside all of these look
like counters that stand still although they should not. `observe` carries from look to look since when that is so,
`diagnose` says what is wrong.
"""

from dataclasses import dataclass

START_SECONDS = 30.0  # until the first beat, and until all workers are there
SENTINEL_SECONDS = 8.0
PUSHER_SECONDS = 10.0
UNANSWERED_SECONDS = 5.0
UNACKNOWLEDGED_SECONDS = 15.0
LOST_SECONDS = 10.0
UNDERSTAFFED_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a cluster showed; times are monotonic seconds."""

    started_at: float
    sentinel_at: float
    pusher_at: float
    sent: int  # wake tokens
    picked: int
    finished: int
    acknowledged: int
    workers: int  # as many should live
    idle_workers: int  # living ones
    busy_workers: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The latest look, and since when (None: it is not so) something has been waiting in vain."""

    look: Look
    unanswered_since: float | None = None  # tokens lie in the queue, a worker is free, none is picked
    unacknowledged_since: float | None = None  # results lie in the other queue, none is acknowledged
    lost_since: float | None = None  # more tokens were picked and not finished than workers are at work
    understaffed_since: float | None = None


def observe(before: Snapshot | None, look: Look, now: float) -> Snapshot:
    """Return what is known after `look`."""
    if before is None:
        before = Snapshot(look)
    last = before.look

    def since(earlier: float | None, waiting: bool, moved: bool) -> float | None:
        if not waiting:
            return None
        return now if moved or earlier is None else earlier

    return Snapshot(
        look,
        unanswered_since=since(
            before.unanswered_since, look.sent > look.picked and look.idle_workers > 0, look.picked != last.picked
        ),
        unacknowledged_since=since(
            before.unacknowledged_since,
            look.finished > look.acknowledged,
            look.acknowledged != last.acknowledged,
        ),
        lost_since=since(
            before.lost_since, look.picked - look.finished > look.busy_workers, look.finished != last.finished
        ),
        understaffed_since=since(
            before.understaffed_since, look.idle_workers + look.busy_workers < look.workers, False
        ),
    )


def diagnose(snapshot: Snapshot, now: float) -> str | None:
    """Return why the cluster must be replaced, None while it works or may still be starting."""
    look = snapshot.look

    def is_stale(beat: float, limit: float) -> bool:
        if beat <= look.started_at:
            return now - look.started_at > START_SECONDS
        return now - beat > limit

    def is_over(since: float | None, limit: float) -> bool:
        return since is not None and now - since > limit

    if is_stale(look.sentinel_at, SENTINEL_SECONDS):
        return "its sentinel has stopped"
    if is_stale(look.pusher_at, PUSHER_SECONDS):
        return "its pusher has stopped"
    if is_over(snapshot.unanswered_since, UNANSWERED_SECONDS):
        return "its free workers do not answer"
    if is_over(snapshot.unacknowledged_since, UNACKNOWLEDGED_SECONDS):
        return "its results are not read"
    if is_over(snapshot.lost_since, LOST_SECONDS):
        return "a wake token is lost"
    if now - look.started_at > START_SECONDS and is_over(snapshot.understaffed_since, UNDERSTAFFED_SECONDS):
        return "its workers do not come back"
    return None
