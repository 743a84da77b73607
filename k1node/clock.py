"""The time loop of a node: whatever happens because time has passed happens here, as conditional updates.

Any number of nodes run one each against the same database; they compete row by row, never by an election, so the loss
of one loses nothing. Each duty stands alone: one that fails is logged and tried again at the next tick, the others go
on. The loop sleeps until the next slot or delay is due, at most TICK.

| duty | every | what it does |
|---|---|---|
| stage | tick | delays and backoffs whose time has come go to the queue |
| fire | tick | due slots make tasks and ledger rows |
| rescue own | tick | tasks of this node's dead workers, told by the board |
| rescue expired | 1 s | claims whose lease ran out, once this clock has seen the database for a whole lease |
| report | 1 s | this node's row: load, limits, beats |
| note lost nodes | 5 s | those that fell silent, once this clock has seen the database for as long |
| tend breakers | tick | what an opening one stops is parked, probes go out, what waited is let through |
| wake breakers | 0.5 s | those that could probe and at which a task has arrived; a hold whose time is over ends |
| resume | 0.5 s | paused tasks whose pause is over go on |
| carry on bulk jobs | tick | the next few of each set: redrives, redeliveries, failed tasks of batches retried |
| tend batches | tick | what is due goes on, what is over ends, what was retried begins anew |
| seal audit log | 1 s | one block over the new records |
| note audit checkpoint | 60 s | the newest block, outside the database |
| sweep gates | 30 s | missed releases, counts that do not match |
| fold, prune | 60 s, or 1 s while there is more | old counters together, old rows away, in small batches |
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from django.db import DatabaseError, InterfaceError, OperationalError, connection

from batches import steering as batch_steering
from batches import upkeep
from k1node import tidying
from k1node.audit import chain, trail
from k1node.broker import board as open_board
from k1node.lib import sql
from k1node.lib.board import GONE, Board
from k1node.lib.clock_time import database_now
from k1node.lib.node_id import node_id
from k1node.operations import jobs
from recovery import breakers, holds, interventions, redrives, supervision
from scheduling import claims, gates, nodes, retention, slots
from webhooks import redelivery

logger = logging.getLogger(__name__)

TICK = 0.2
GAP_SECONDS = 5.0  # a longer pause between two ticks (an outage, a suspend) makes every lease look dead
STAGE_MOST = 1000
KINDS = {kind.name: kind for kind in (redrives.REDRIVE, redelivery.REDELIVERY, batch_steering.RETRY_FAILED)}
JOBS_SECONDS = 0.3  # bulk jobs can wait, slots and delays cannot
DUTY_SECONDS = 2.0  # a duty that finds more to do goes on at the next tick, after the others


@dataclass
class Duty:
    name: str
    every: float  # seconds
    work: Callable[[datetime], object]
    due: float = field(default=0.0)


class Clock:
    def __init__(self, board: Board | None = None) -> None:
        self.board = board or open_board()
        self.policies = supervision.Policies()
        self.started_at = datetime.now(UTC)
        self._sweep_after = self._prune_after = 0
        self._seen_since = self._seen_at = _suspend_aware()
        self._failed = False  # in the last tick
        self._has_more = False  # bulk jobs have more to do at once
        self.duties = [
            Duty("stage", 0, self.stage),
            Duty("fire", 0, self.fire),
            Duty("rescue own", 0, self.rescue_own),
            Duty("rescue expired", 1, self.rescue_expired),
            Duty("report", 1, self.report),
            Duty("note lost nodes", 5, self.note_lost),
            Duty("tend breakers", 0, self.tend_breakers),
            Duty("wake breakers", 0.5, self.wake_breakers),
            Duty("resume", 0.5, self.resume),
            Duty("carry on bulk jobs", 0, self.carry_on),
            Duty("tend batches", 0, self.tend_batches),
            Duty("seal audit log", 1, self.seal_audit),
            Duty("note audit checkpoint", 60, lambda now: chain.write_checkpoint()),
            Duty("sweep gates", 30, self.sweep_gates),
            tidying := Duty("fold and prune", 60, self.tidy),
        ]
        self._tidying = tidying

    def run(self, stopping: Callable[[], bool]) -> None:
        """Tick until `stopping` says so."""
        while not stopping():
            try:
                now = database_now()
            except (DatabaseError, InterfaceError):
                # It beats on while it waits, or `up` would take it for hung.
                logger.exception("The clock cannot reach the database")
                connection.close()
                self.board.clock_beat()
                time.sleep(1)
                continue
            self.tick(now)
            time.sleep(self._patience())

    def say_goodbye(self) -> None:
        """Note that this node is being stopped, as far as the database can be reached."""
        try:
            nodes.note_stop(now=database_now())
        except (DatabaseError, InterfaceError):
            logger.warning("The database does not know that this node has stopped", exc_info=True)

    def tick(self, now: datetime) -> None:
        """Do every duty that is due at `now`."""
        self.board.clock_beat()
        self._notice_gap()
        monotonic = time.monotonic()
        self._failed = was_out = False
        for duty in self.duties:
            if monotonic < duty.due:
                continue
            duty.due = monotonic + duty.every
            try:
                duty.work(now)
            except Exception as error:
                self._failed = True
                was_out = was_out or isinstance(error, (OperationalError, InterfaceError))
                logger.exception("A duty of the clock failed", extra={"duty": duty.name})
                connection.close()
        if was_out:
            # Leases were not renewed either. Any other error says nothing about them.
            self._seen_since = _suspend_aware()

    def _notice_gap(self) -> None:
        now = _suspend_aware()
        if now - self._seen_at > GAP_SECONDS:
            logger.warning("The clock was away", extra={"seconds": round(now - self._seen_at, 1)})
            self._seen_since = now
        self._seen_at = now

    def _patience(self) -> float:
        try:
            nearest = min(filter(None, (slots.next_slot_at(), claims.next_staging_at())), default=None)
        except Exception:
            logger.exception("The clock cannot look ahead")
            connection.close()
            return 1.0
        if self._has_more and not self._failed:
            return 0.001
        if nearest is None or self._failed:
            return TICK  # what is due may be what fails
        return max(0.001, min(TICK, (nearest - database_now()).total_seconds()))

    # --- duties ---

    def stage(self, now: datetime) -> None:
        until = time.monotonic() + DUTY_SECONDS
        while claims.is_staging_due(now=now) and time.monotonic() < until:
            if sql.in_transaction(lambda: claims.stage(now=now, limit=STAGE_MOST)) < STAGE_MOST:
                break

    def fire(self, now: datetime) -> None:
        until = time.monotonic() + DUTY_SECONDS
        while slots.fire_due(now=now) and time.monotonic() < until:
            pass

    def rescue_own(self, now: datetime) -> None:
        for index, slot in self.board.slots():
            if slot.state != GONE:
                continue
            owner = f"{node_id()}:{slot.pid}:{slot.born}"
            running = (int(slot.task), int(slot.fence)) if slot.task else None
            self.policies.get("")
            held = sql.in_transaction(partial(supervision.rescue_worker, owner, running, self.policies, now=now))
            logger.warning("Rescued the tasks of a dead worker", extra={"pid": slot.pid, "tasks": held})
            self.board.free_slot(index)

    def rescue_expired(self, now: datetime) -> None:
        if _suspend_aware() - self._seen_since < claims.LEASE.total_seconds() or not claims.is_any_expired(now=now):
            return
        self.policies.get("")
        count = sql.in_transaction(lambda: supervision.rescue_expired(self.policies, now=now))
        if count:
            logger.warning("Rescued claims whose lease ran out", extra={"tasks": count})

    def report(self, now: datetime) -> None:
        nodes.report(self.board, started_at=self.started_at, now=now)

    def note_lost(self, now: datetime) -> None:
        # After an outage of the database every node looks silent.
        if _suspend_aware() - self._seen_since >= nodes.LOST_AFTER.total_seconds():
            nodes.note_lost(now=now)

    def tend_breakers(self, now: datetime) -> None:
        until = time.monotonic() + DUTY_SECONDS
        while breakers.tend(now=now) and time.monotonic() < until:
            pass

    def wake_breakers(self, now: datetime) -> None:
        breakers.wake_idle(now=now)
        holds.end_overdue(now=now)

    def resume(self, now: datetime) -> None:
        until = time.monotonic() + DUTY_SECONDS
        while interventions.resume_overdue(now=now) == interventions.RESUME_MOST and time.monotonic() < until:
            pass

    def carry_on(self, now: datetime) -> None:
        until = time.monotonic() + JOBS_SECONDS
        while (more := jobs.tend(KINDS, now=now)) and time.monotonic() < until:
            pass
        self._has_more = bool(more)

    def tend_batches(self, now: datetime) -> None:
        until = time.monotonic() + DUTY_SECONDS
        while upkeep.tend(now=now) and time.monotonic() < until:
            pass

    def seal_audit(self, now: datetime) -> None:
        trail.fold(now=now)
        chain.seal(now=now)

    def sweep_gates(self, now: datetime) -> None:
        self._sweep_after = gates.sweep(now=now, after=self._sweep_after)
        breakers.wake_forgotten(now=now)

    def tidy(self, now: datetime) -> None:
        retention.fold_counters(now=now)
        pruned = tidying.prune(now=now, after=self._prune_after)
        self._prune_after = pruned.after
        if pruned.rows >= retention.BATCH or pruned.after:
            # A busy node makes in a minute far more than one call may delete.
            self._tidying.due = time.monotonic() + 1


def _suspend_aware() -> float:
    """Return monotonic seconds that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
