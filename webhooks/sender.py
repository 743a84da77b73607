"""The sender of a node: fans events out, claims deliveries, sends many at a time and records what came of them.

One asyncio loop for the network and one thread for the database, which alone has a connection to it. The two meet in
turns: the loop hands over the results it has and how many more it can take, the thread does what is due and gives back
the jobs it has claimed. A turn follows when a result is there, or after a while.

| in each turn | every | what |
|---|---|---|
| record | turn | results, all in one transaction; kept until the database has them |
| fan out | turn | new events become deliveries |
| rescue | 1 s | deliveries whose lease has run out |
| finish rotations | 10 s | secrets whose overlap is over |
| claim | turn | as many as there are places; not once it is asked to stop |

Any number of nodes run one each. What a sender has claimed when it dies is taken back by the next one of its node, or
rescued by any; the receiver may then get it twice, with the same id.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection

from k1node.lib.board import Board, process_birth
from k1node.lib.clock_time import carried_now, database_now
from k1node.lib.node_id import node_id
from webhooks import delivery, fanout, results, rotation, sending
from webhooks.delivery import Job
from webhooks.models import Webhook
from webhooks.rules import Result

logger = logging.getLogger(__name__)

MOST_IN_FLIGHT = 512
KEPT = 128  # of these places, for webhooks that have nothing under way
MOST_CLAIMED = 128  # in one turn
SLACK = timedelta(seconds=15)  # of a lease, beyond the longest request
STOP_SECONDS = 5.0  # for what is in flight
LAST_WORDS_SECONDS = 3.0  # for what is to be recorded then
OUTAGE_SECONDS = 1.0
STUCK_SECONDS = 60.0  # a turn that takes longer ends the beats, and `up` this process
BEAT_SECONDS = 1.0
FAN_OUT_SECONDS = 0.3
RESCUE_SECONDS = 1.0
RECORD_SECONDS = 5.0  # after an outage, for other nodes to record what they have before it is taken for lost
ROTATE_SECONDS = 10.0
GATHER_SECONDS = 0.005  # after a result, for others to come along
BUSY_SECONDS = 0.1  # from turn to turn, while something is sent
QUIET_SECONDS = 0.2  # nothing is
IDLE_SECONDS = 1.0  # no webhook is active

Given = TypeVar("Given")
Report = tuple[Job, Result]


@dataclass
class Turn:
    """What a turn of the database thread came to."""

    recorded: int = 0
    jobs: list[Job] = field(default_factory=list)
    has_more: bool = False  # events to fan out, or deliveries to claim
    is_any_active: bool = True
    failed: bool = False


def owner_name() -> str:
    """Return what the deliveries of this process are claimed by."""
    return f"{node_id()}:{os.getpid()}:{process_birth(os.getpid())}"


class Sender:
    def __init__(self, network: sending.Network, board: Board, *, owner: str | None = None) -> None:
        self.network = network
        self.board = board
        self.owner = owner or owner_name()
        self.lease = network.within + SLACK
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._turned_at = time.monotonic()  # when the present turn began, or the last one ended
        self._sent: dict[asyncio.Task[None], Job] = {}
        self._unsent: list[Job] = []  # claimed, but not begun
        self._finished: list[Report] = []
        self._wake = asyncio.Event()
        # Of the database thread alone.
        self._has_taken_back = False
        self._rescue_at = self._rotate_at = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until `stopping` is set, then end what is under way or give it back."""
        beating = asyncio.create_task(self._beat())
        waking = asyncio.create_task(self._wake_at(stopping))
        try:
            while not stopping.is_set():
                turn = await self._turn(claim=True)
                for job in turn.jobs:
                    self._start(job)
                await self._rest(turn)
            await self._end()
        finally:
            beating.cancel()
            waking.cancel()
            await asyncio.gather(beating, waking, return_exceptions=True)
            await self._in_database(lambda: connection.close())  # that of the thread, not of this one
            self._database.shutdown()

    # --- the loop's side ---

    def _start(self, job: Job) -> None:
        task = asyncio.create_task(self._send(job))
        self._sent[task] = job
        task.add_done_callback(self._is_done)

    async def _send(self, job: Job) -> None:
        result = await sending.send(self.network, job, clock=carried_now)
        self._finished.append((job, result))

    def _is_done(self, task: asyncio.Task[None]) -> None:
        job = self._sent.pop(task)
        if task.cancelled():
            self._unsent.append(job)
        elif error := task.exception():
            # Its lease runs out.
            logger.error("An attempt was lost", exc_info=error, extra={"delivery_id": job.delivery_id})
        self._wake.set()

    async def _rest(self, turn: Turn) -> None:
        """Wait until the next turn is due: soon after a result, at once if there is more to do."""
        if turn.failed:
            await asyncio.sleep(OUTAGE_SECONDS)
            return
        if turn.has_more and self._free:
            return
        patience = BUSY_SECONDS if self._sent else QUIET_SECONDS if turn.is_any_active else IDLE_SECONDS
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), patience)
            await asyncio.sleep(GATHER_SECONDS)

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._wake.set()

    async def _beat(self) -> None:
        while True:
            if time.monotonic() - self._turned_at < STUCK_SECONDS:
                self.board.sender_beat()
            await asyncio.sleep(BEAT_SECONDS)

    @property
    def _free(self) -> int:
        # What the database does not take counts too: an outage must not fill the memory.
        return max(0, min(MOST_CLAIMED, MOST_IN_FLIGHT - len(self._sent) - len(self._finished)))

    @property
    def _kept(self) -> int:
        """Return how many of the free places are for webhooks that have nothing under way."""
        return max(0, self._free - max(0, MOST_IN_FLIGHT - KEPT - len(self._sent) - len(self._finished)))

    async def _turn(self, *, claim: bool) -> Turn:
        self._wake.clear()
        reports, limit, kept = list(self._finished), self._free if claim else 0, self._kept
        turn = await self._in_database(lambda: self._do_turn(reports, limit, kept, fan_out=claim))
        del self._finished[: turn.recorded]
        return turn

    async def _end(self) -> None:
        """Wait a little for what is in flight, then record what came of it and give the rest back."""
        if self._sent:
            await asyncio.wait(list(self._sent), timeout=STOP_SECONDS)
        for task in list(self._sent):
            task.cancel()
        await asyncio.gather(*self._sent, return_exceptions=True)
        await asyncio.sleep(0)  # for the callbacks
        until = time.monotonic() + LAST_WORDS_SECONDS
        while (await self._turn(claim=False)).failed and time.monotonic() < until:
            await asyncio.sleep(0.3)
        if self._unsent:
            with suppress(OperationalError, InterfaceError):
                await self._in_database(lambda: delivery.give_back(self._unsent, now=database_now()))
        logger.info("Sender ended", extra={"given_back": len(self._unsent), "unrecorded": len(self._finished)})

    async def _in_database(self, work: Callable[[], Given]) -> Given:
        self._turned_at = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._database, work)
        finally:
            self._turned_at = time.monotonic()

    # --- the database thread's side ---

    def _do_turn(self, reports: Sequence[Report], limit: int, kept: int, *, fan_out: bool) -> Turn:
        """Do what is due. Each duty stands alone, but for an outage, which ends the turn."""
        turn = Turn()
        duties: list[Callable[[datetime, Turn], None]] = [lambda now, turn: self._record(reports, now, turn)]
        if fan_out:
            duties += [self._take_back, self._fan_out, self._rescue, self._rotate]
            duties.append(lambda now, turn: self._claim(limit, kept, now, turn))
        for duty in duties:
            try:
                duty(database_now(), turn)
            except Exception as error:
                logger.exception("A duty of the sender failed")
                connection.close()
                turn.failed = True
                if isinstance(error, (OperationalError, InterfaceError)):
                    self._rescue_at = time.monotonic() + RECORD_SECONDS
                    break
        return turn

    def _record(self, reports: Sequence[Report], now: datetime, turn: Turn) -> None:
        try:
            results.record(reports, now=now)
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            logger.exception("Results cannot be recorded together")
            connection.close()
            for report in reports:
                self._record_alone(report, now)
        turn.recorded = len(reports)

    def _record_alone(self, report: Report, now: datetime) -> None:
        """Record one result, if need be without what it has of the receiver: it must not hold up the others."""
        job, result = report
        bare = Result(code=result.code, finished_at=result.finished_at, status=result.status, error=result.error)
        for each in (result, bare):
            try:
                results.record([(job, each)], now=now)
                return
            except (OperationalError, InterfaceError):
                raise
            except Exception:
                logger.exception("A result cannot be recorded", extra={"delivery_id": job.delivery_id})
                connection.close()

    def _take_back(self, now: datetime, _turn: Turn) -> None:
        if not self._has_taken_back:
            delivery.take_back(f"{node_id()}:", owner=self.owner, now=now)
            self._has_taken_back = True

    def _fan_out(self, now: datetime, turn: Turn) -> None:
        turn.is_any_active = Webhook.objects.filter(active=True, deleted_at=None).exists()
        until = time.monotonic() + FAN_OUT_SECONDS
        while turn.is_any_active and fanout.advance(now=now):
            if time.monotonic() > until:
                turn.has_more = True
                return

    def _rescue(self, now: datetime, _turn: Turn) -> None:
        if time.monotonic() >= self._rescue_at:
            delivery.rescue(now=now)
            self._rescue_at = time.monotonic() + RESCUE_SECONDS

    def _rotate(self, now: datetime, _turn: Turn) -> None:
        if time.monotonic() >= self._rotate_at:
            rotation.finish_due(now=now)
            self._rotate_at = time.monotonic() + ROTATE_SECONDS

    def _claim(self, limit: int, kept: int, now: datetime, turn: Turn) -> None:
        turn.jobs = delivery.claim(self.owner, limit=limit, kept=kept, lease=self.lease, now=now)
        turn.has_more = turn.has_more or len(turn.jobs) == limit > 0
