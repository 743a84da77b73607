"""What a worker process does with a wake token: claim, run, settle and claim the next, for a few seconds.

The loop, in the main thread of one of django-q2's worker processes:

    1. become busy on the board, if the node's limits allow one more;
    2. claim a bundle (or one task) in a transaction;
    3. run its tasks one after another, each to an Outcome;
    4. settle them all and claim the next bundle, in one transaction; go on with 3 until time is up or nothing waits.

A second thread, the Heartbeat, steers the run that is going on: it renews the leases, reads what an operator wants,
ends a Python handler that is over its time, gives the unstarted rest of a slow bundle back, and stops the run when the
node drains or `up` is gone. Both threads share one Bundle under its lock; whoever removes a claim from `waiting` owns
it from then on.

What only this process knows is never needed by anybody else: the board tells which task runs, the database the rest.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection

from k1node.access import task_tokens
from k1node.broker import board as open_board
from k1node.broker import most_running
from k1node.events import log
from k1node.lib import lifeline, sql
from k1node.lib.board import WorkerSlot, process_birth
from k1node.lib.clock_time import carried_now, database_now
from k1node.lib.node_id import node_id
from k1node.node.probe import address_to_ask
from recovery import supervision
from scheduling import claims, execution, handlers, settlement
from scheduling.claims import Claim
from scheduling.execution import Control
from scheduling.outcomes import Outcome
from scheduling.output import Chunk
from scheduling.registry import StopReason
from scheduling.settlement import Settlement

logger = logging.getLogger(__name__)

TURN_SECONDS = 3.0  # then back to django-q2, which may want to stop or recycle this process
BUNDLE_MS = 100.0
LONG_MS = 50.0  # a handler this slow is claimed alone
SLOW_BUNDLE_SECONDS = 0.5
BEAT_SECONDS = 0.1
CONTROL_SECONDS = 1.0
SETTLE_SECONDS = 300.0  # results are kept for a database that is away for so long
SETTLE_PAUSE_SECONDS = 1.0
STUCK_SETTLE_SECONDS = 10.0
ENDS: dict[str, StopReason] = {"cancel": "cancel", "skip": "skip"}
TOKEN_SLACK_SECONDS = 60  # a task's API token outlives its timeout by this much


class Bundle:
    """The claims in this worker's hands: one runs, others wait, others are done and not settled yet."""

    def __init__(self, held: Sequence[Claim]) -> None:
        self.lock = threading.Lock()
        self.waiting = list(held)
        self.current: Claim | None = None
        self.control = Control()
        self.done: list[tuple[Claim, Outcome]] = []
        self.began = self.started = time.monotonic()
        self.shown: Claim | None = held[0] if held else None  # the one that is marked as started

    def next(self) -> Claim | None:
        """Start the next one; None when nothing is left (or the rest was given back)."""
        with self.lock:
            self.current = self.waiting.pop(0) if self.waiting else None
            self.control = Control()
            self.started = time.monotonic()
            return self.current

    def started_at(self) -> datetime:
        """Return when the current run began."""
        return carried_now() - timedelta(seconds=time.monotonic() - self.started)

    def milliseconds(self) -> float:
        """Return how long the current run has taken, pauses left out."""
        return (time.monotonic() - self.started - self.control.paused_seconds) * 1000

    def finish(self, outcome: Outcome) -> None:
        with self.lock:
            if self.current is not None:
                self.done.append((self.current, outcome))
                self.current = None

    def take_waiting(self) -> list[Claim]:
        with self.lock:
            rest, self.waiting = self.waiting, []
            return rest

    def held(self) -> list[Claim]:
        with self.lock:
            running = [self.current] if self.current else []
            return [claim for claim, _ in self.done] + running + self.waiting


class Durations:
    """Measured means of handlers, in milliseconds: what makes a bundle. Slow to believe in speed, quick in slowness."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def add(self, handler: str, milliseconds: float) -> None:
        mean = self._means.get(handler)
        if mean is None:
            if len(self._means) > 10_000:
                self._means.clear()
            self._means[handler] = milliseconds
        else:
            self._means[handler] = mean + (milliseconds - mean) * (0.5 if milliseconds > mean else 0.1)

    def choose(self, head: Sequence[tuple[str, bool]]) -> int:
        """Say how many tasks from the head of the queue make a bundle of about BUNDLE_MS; see claims.Choose."""
        total = 0.0
        for count, (handler, solo) in enumerate(head):
            mean = self._means.get(handler)
            if solo or mean is None or mean > LONG_MS:
                return max(1, count)
            total += mean
            if total > BUNDLE_MS:
                return max(1, count)
        return len(head)


class Worker:
    """One worker process. Made at the first token, in the main thread."""

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.board = slot.board
        self.owner = f"{node_id()}:{os.getpid()}:{process_birth(os.getpid())}"
        self.name = f"{node_id()[:8]}-{slot.index}"
        self.lifeline = lifeline.descriptor()
        self.policies = supervision.Policies()
        self.durations = Durations()
        self.window = 2
        self.grace = timedelta(seconds=settings.K1NODE_KILL_GRACE_SECONDS)
        self.heartbeat = Heartbeat(self)

    # --- one turn ---

    def turn(self) -> None:
        """Work until nothing waits, time is up, or the node wants its workers back."""
        if lifeline.is_cut(self.lifeline) or not self.slot.begin(max_running=self._limit()):
            return
        until = time.monotonic() + TURN_SECONDS
        self.heartbeat.wake()
        try:
            bundle = self._settle_and_claim([])
            while bundle is not None:
                self._run(bundle)
                may_go_on = time.monotonic() < until and not self.is_wanted_back() and not self._is_over_limit()
                bundle = self._settle_and_claim(bundle.done, claim_next=may_go_on)
        finally:
            self.heartbeat.rest()
            self.slot.end()

    def is_wanted_back(self) -> bool:
        return bool(self.board.drain_until) or self.slot.is_retired or lifeline.is_cut(self.lifeline)

    def _limit(self) -> int:
        """Return how many tasks may run on this node now; one always may."""
        return most_running(self.board)

    def _is_over_limit(self) -> bool:
        return self.board.running() > self._limit()

    # --- claiming and settling ---

    def _settle_and_claim(self, done: Sequence[tuple[Claim, Outcome]], *, claim_next: bool = True) -> Bundle | None:
        """Settle what is done and claim the next bundle in one transaction; None when there is no next."""
        settlements: list[Settlement] = []
        bundle: list[Claim] = []
        patient_until = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                self.policies.get("")  # read them now if they are due: not inside the write transaction
                # Once: it takes what output is not stored yet.
                settlements = settlements or supervision.conclude_all(done, self.policies)
                now = database_now()
                if settlements or claim_next:
                    bundle = sql.in_transaction(partial(self._exchange, settlements, claim_next=claim_next, now=now))
                break
            except (OperationalError, InterfaceError):
                # The leases live as long as this process: what has run need not run again. A database that has
                # restarted during the run is found out only here.
                if not done or time.monotonic() > patient_until:
                    raise
                logger.exception("Cannot settle yet", extra={"tasks": len(done)})
                connection.close()
                time.sleep(SETTLE_PAUSE_SECONDS)
        if not bundle:
            self.heartbeat.bundle = None
            return None
        self.window = min(claims.BUNDLE_MOST, max(2, 2 * len(bundle)))
        self.heartbeat.bundle = held = Bundle(bundle)
        return held

    def _exchange(self, settlements: Sequence[Settlement], *, claim_next: bool, now: datetime) -> list[Claim]:
        supervision.settle(settlements, worker=self.name, shard=self.slot.index, now=now)
        if not claim_next:
            return []
        bundle = claims.claim(owner=self.owner, now=now, window=self.window, choose=self.durations.choose)
        if len(bundle) == 1:
            log.publish("task.started", {"task_id": bundle[0].task_id, "status": "executing"}, now=now)
        return bundle

    # --- running ---

    def _run(self, bundle: Bundle) -> None:
        while (claim := bundle.next()) is not None:
            self.slot.running(claim.id, claim.fence)
            outcome = self._run_one(claim, bundle.control)
            bundle.finish(outcome)
            self.slot.running(0, 0)
            self.durations.add(claim.handler, bundle.milliseconds())

    def _run_one(self, claim: Claim, control: Control) -> Outcome:
        if asked := ENDS.get(claim.control):
            control.stop(asked)  # asked for during an earlier claim that was given back: it does not begin
        return execution.run(
            claim.handler,
            task_id=claim.task_id,
            attempt=claim.attempt + 1,
            parameters=claim.parameters,
            timeout=timedelta(milliseconds=claim.timeout_ms),
            grace=self.grace,
            control=control,
            environment=self._environment(claim),
            now=carried_now,
            on_start=self.slot.group,
            on_flush=lambda chunks: self._flush(claim, chunks),
        )

    def _environment(self, claim: Claim) -> dict[str, str] | None:
        if claim.handler.startswith(handlers.PYTHON_PREFIX):
            return None
        lifetime = claim.timeout_ms // 1000 + TOKEN_SLACK_SECONDS
        host = address_to_ask(settings.K1NODE_BIND)
        if ":" in host:
            host = f"[{host}]"
        return {
            "K1_API_URL": f"http://{host}:{settings.PORT}/api/v2",
            "K1_API_TOKEN": task_tokens.issue(claim.id, claim.fence, lifetime),
        }

    def _flush(self, claim: Claim, chunks: list[Chunk]) -> None:
        if chunks:
            sql.in_transaction(lambda: settlement.store_output(claim, chunks, chunks[-1].end))


class Heartbeat(threading.Thread):
    """The thread beside the run; see the module's docstring."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.worker = worker
        self.bundle: Bundle | None = None
        self._busy = threading.Event()
        self._cut_at = 0.0
        self._ending = False
        self.start()

    def wake(self) -> None:
        self._busy.set()

    def rest(self) -> None:
        self.bundle = None
        self._busy.clear()

    def end(self) -> None:
        """Stop the thread and wait for it."""
        self._ending = True
        self._busy.set()
        self.join()

    def run(self) -> None:
        try:
            self._beat()
        finally:
            connection.close()

    def _beat(self) -> None:
        renewed = looked = time.monotonic()
        bundle: Bundle | None = None
        while not self._ending:
            if not self._busy.wait(timeout=30):
                connection.close()  # an idle worker holds one connection, not two
                continue
            time.sleep(BEAT_SECONDS)
            now = time.monotonic()
            if self.bundle is not bundle:
                bundle = self.bundle
                renewed = looked = now
            if bundle is None:
                continue
            try:
                self._steer(bundle, now)
                if now - looked >= CONTROL_SECONDS:
                    looked = now
                    self._look(bundle)
                if now - renewed >= claims.RENEW_EVERY.total_seconds():
                    renewed = now
                    self._renew(bundle)
            except Exception:
                # Whatever it was: without a heartbeat the leases run out and no timeout is kept.
                logger.exception("A heartbeat failed")
                connection.close()

    def _steer(self, bundle: Bundle, now: float) -> None:
        worker, control = self.worker, bundle.control
        if worker.is_wanted_back() or now - bundle.began > SLOW_BUNDLE_SECONDS:
            self._give_back(bundle)
        if self._must_stop(now):
            control.stop("drain")
        if control.overdue(now):
            control.stop("timeout")
        if control.reason is not None and bundle.current is not None:
            is_python = bundle.current.handler.startswith(handlers.PYTHON_PREFIX)
            if is_python and control.is_stuck(now):
                self._end_stuck(bundle)

    def _must_stop(self, now: float) -> bool:
        until = self.worker.board.drain_until
        if not until and lifeline.is_cut(self.worker.lifeline):
            # Kept here, not on the board: a new `up` may already be working beside this process.
            self._cut_at = self._cut_at or now
            until = self._cut_at + settings.K1NODE_DRAIN_SECONDS
        return bool(until) and now >= until

    def _give_back(self, bundle: Bundle) -> None:
        rest = bundle.take_waiting()
        current = bundle.current
        late = current if current is not bundle.shown else None
        if not rest and late is None:
            return
        now = database_now()

        def work() -> None:
            claims.give_back(rest)
            if late is not None:
                claims.mark_started(late, now=now)

        sql.in_transaction(work)
        bundle.shown = current

    def _look(self, bundle: Bundle) -> None:
        """Do to the running task what an operator has asked for."""
        claim, control = bundle.current, bundle.control
        if claim is None:
            return
        found = claims.controls(claim)
        if bundle.current is not claim:
            return
        if found is None:
            control.stop("lease")
        elif found[0] == "cancel":
            control.stop("cancel")
        elif found[0] == "skip":
            control.stop("skip")
        elif found[0] == "pause":
            # One that never looks would run on, and without a timeout.
            if control.checkpoints or not claim.handler.startswith(handlers.PYTHON_PREFIX):
                control.pause()
        else:
            control.resume()

    def _renew(self, bundle: Bundle) -> None:
        current, control, held = bundle.current, bundle.control, bundle.held()
        now = database_now()
        renewed = sql.in_transaction(lambda: claims.renew(held, now=now))
        if current is not None and current.id not in renewed and bundle.current is current:
            control.stop("lease")

    def _end_stuck(self, bundle: Bundle) -> None:
        """Settle for a main thread that does not come back, and end this process: nothing else stops such a handler."""
        worker = self.worker
        with bundle.lock:
            claim, control = bundle.current, bundle.control
            if claim is None:
                return
            # The lock is kept to the end: should the handler end now after all, this process begins nothing else.
            # And the handler may hold what a settlement needs (SQLite's write lock): then this ends without one.
            lifeline.end_this_process_after(STUCK_SETTLE_SECONDS)
            done = [*bundle.done, (claim, execution.stuck(control, started_at=bundle.started_at(), now=carried_now))]
            rest = bundle.waiting
            bundle.current, bundle.done, bundle.waiting = None, [], []

            def work() -> None:
                supervision.settle(settlements, worker=worker.name, shard=worker.slot.index, now=now)
                claims.give_back(rest)

            try:
                now = database_now()
                settlements = supervision.conclude_all(done, worker.policies)
                sql.in_transaction(work)
            finally:
                logger.error("A Python handler did not stop; its worker ends", extra={"task": claim.task_id})
                os.kill(os.getpid(), signal.SIGKILL)


_worker: Worker | None = None


def prepare(cluster: int) -> Worker:
    """Make this process a worker of `cluster`: its place on the board, its signals, its heartbeat."""
    global _worker
    execution.prepare_process()
    execution.install_stop_signal()
    _worker = Worker(open_board().take_slot(cluster))
    lifeline.last_act = _worker.slot.kill_group
    return _worker


def work() -> None:
    """Answer one wake token."""
    worker = _worker
    if worker is None:
        raise RuntimeError("This process was not prepared to work")
    cluster = worker.board.cluster_of(worker.slot)
    if cluster is not None:
        with worker.board.locked():
            cluster.picked += 1
    try:
        worker.turn()
    except (DatabaseError, InterfaceError):
        logger.exception("A turn ended early")
        connection.close()
        time.sleep(1)
    finally:
        if cluster is not None:
            with worker.board.locked():
                cluster.finished += 1
        if worker.slot.is_retired or lifeline.is_cut(worker.lifeline):
            # The cluster behind this process is broken or ending: leave without touching its queues.
            connection.close()
            worker.slot.leave()
            os._exit(0)
