"""Sealing the audit log, and telling whether anybody has touched it.

Records are plain inserts. Once a second the clock takes those that came since the last block and writes one block: how
many they are, which is the last, and the HMAC of the previous block's hash and of every record in order, under a key
that is not in the database. Chaining each insert to the one before would let only one transaction write at a time.

    block 1 ──▶ block 2 ──▶ block 3        a checkpoint outside the database: "3, and its hash"
    r1 r2       r3          r4 r5 r6       r7 r8 wait for the next second

The order is that of k1node.events.log: by id on SQLite, by (xid, id) on PostgreSQL, only below the oldest transaction
still running, beyond which nothing can appear any more; so a late commit is sealed late, never stepped over.

What `verify` finds, whoever made it with whatever rights on the database: a record changed, removed, added or moved
within what is sealed (the block's hash is another), a block changed, removed or moved (its number or hash does not
follow), the newest blocks cut off (the checkpoint names one that is not there). What it cannot find is a forged record
that waited to be sealed like any other, or a cut behind the latest checkpoint: at most a minute, less where the log
lines "Audit checkpoint" are kept elsewhere.

Pruning deletes whole blocks from the oldest on, unless they do not verify, and says so in a record with a proof under
the same key, or whoever can add a record could cut off the beginning. The first block that is left must follow what the
latest such record names. When a block was sealed is part of its seal: pruning goes by that.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings
from django.db import connection, transaction

from k1node.audit import trail
from k1node.audit.models import AuditBlock, AuditPruning, AuditRecord
from k1node.lib import sql

logger = logging.getLogger(__name__)

BLOCK_MOST = 5000  # records; what is left waits for the next block
PRUNE_BLOCKS = 200  # each is verified before
LOCK = 0x6B31_6175  # of this duty on PostgreSQL
START = "0" * 64  # what the first block follows
PRUNED = "audit.pruned"
FIELDS = "id, at, action, actor, actor_name, address, request_id, target, before, after, reason, count, last_at"
Place = tuple[int, int]


# --- sealing --------------------------------------------------------------------------------------------------------
def seal(*, now: datetime) -> AuditBlock | None:
    """Write one block over the records that no block covers; None if there are none, or another clock is at it."""
    last = _last_block()
    if not _exist_after(_place(last)):
        return None
    with transaction.atomic():
        if sql.is_postgresql() and not _locked():
            return None
        last = _last_block()
        records = list(_records(_place(last), None, BLOCK_MOST))
        if not records:
            return None
        number = last.number + 1 if last else 1
        return AuditBlock.objects.create(
            number=number,
            last_xid=records[-1].place[0],
            last_id=records[-1].place[1],
            count=len(records),
            hash=_hash(number, last.hash if last else START, now, records),
            sealed_at=now,
        )


@dataclass(frozen=True, slots=True)
class _Record:
    place: Place
    content: bytes  # everything in it, in one fixed form


def _records(after: Place, through: Place | None, limit: int) -> Iterator[_Record]:
    """Give records in their order, beyond `after`, up to `through` (None: up to what is certain not to grow)."""
    with connection.cursor() as cursor:
        if sql.is_postgresql():
            columns = FIELDS.replace("before, after", "before::text, after::text")
            bound = "xid < pg_snapshot_xmin(pg_current_snapshot())"
            values: list[Any] = [str(after[0]), after[1]]
            if through is not None:
                bound, values = "(xid, id) <= (%s::text::xid8, %s)", [*values, str(through[0]), through[1]]
            cursor.execute(
                f"SELECT xid::text::bigint, {columns} FROM audit_auditrecord"
                f" WHERE (xid, id) > (%s::text::xid8, %s) AND {bound} ORDER BY xid, id LIMIT %s",
                [*values, limit],
            )
        else:
            cursor.execute(
                f"SELECT 0, {FIELDS} FROM audit_auditrecord WHERE id > %s AND id <= %s ORDER BY id LIMIT %s",
                [after[1], 2**62 if through is None else through[1], limit],
            )
        for xid, pk, at, *rest, before, after_, reason, count, last_at in cursor.fetchall():
            facts = [pk, _moment(at), *rest, _parsed(before), _parsed(after_), reason, count, _moment(last_at)]
            yield _Record((xid, pk), orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))


def _hash(number: int, previous: str, sealed_at: datetime, records: list[_Record]) -> str:
    seal_ = _hmac("block")
    seal_.update(f"{number}\n{previous}\n{_moment(sealed_at)}\n{len(records)}\n".encode())
    for record in records:
        # Each with its length, so that nothing can move from one into the next.
        seal_.update(f"{record.place[0]} {len(record.content)}\n".encode())
        seal_.update(record.content)
    return seal_.hexdigest()


def _proof(through: int, seal_: str, place: Place) -> str:
    """Return what nobody without the key can write into a record of pruning."""
    proof = _hmac("pruned")
    proof.update(f"{through}\n{seal_}\n{place[0]} {place[1]}\n".encode())
    return proof.hexdigest()


def _hmac(purpose: str) -> hmac.HMAC:
    return hmac.new(settings.K1NODE_AUDIT_KEY.encode(), f"{purpose}\n".encode(), hashlib.sha256)


def _moment(value: Any) -> str | None:
    at = sql.moment(value)
    return None if at is None else at.astimezone(UTC).isoformat()


def _parsed(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str) else value


def _last_block() -> AuditBlock | None:
    return AuditBlock.objects.order_by("-number").first()


def _place(block: AuditBlock | None) -> Place:
    return (block.last_xid, block.last_id) if block else (0, 0)


AHEAD = (
    "the log comes from a server with higher transaction numbers than this one: what is new here would lie before what"
    " is sealed; docs/operations.md says how a database moves to another server"
)


def _is_ahead_of_server(block: AuditBlock | None) -> bool:
    if block is None or not sql.is_postgresql():
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        return bool(block.last_xid >= cursor.fetchone()[0])


def _exist_after(place: Place) -> bool:
    with connection.cursor() as cursor:
        where, values = "id > %s", [str(place[1])]
        if sql.is_postgresql():
            where, values = "(xid, id) > (%s::text::xid8, %s::bigint)", [str(place[0]), str(place[1])]
        cursor.execute(f"SELECT 1 FROM audit_auditrecord WHERE {where} LIMIT 1", values)
        return cursor.fetchone() is not None


def _locked() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        return bool(cursor.fetchone()[0])


# --- the checkpoint -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block that there was, known from outside the database."""

    number: int
    hash: str

    @classmethod
    def read(cls, text: str) -> "Checkpoint":
        """Return what "3:<64 hex digits>" says. Raises ValueError."""
        number, _, digits = text.strip().partition(":")
        if not number.isdigit() or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
            raise ValueError("A checkpoint is written NUMBER:HASH, as the log has it.")
        return cls(int(number), digits)

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


def checkpoint_file() -> Path:
    return Path(settings.K1NODE_DATA) / "audit.checkpoint"


def write_checkpoint() -> Checkpoint | None:
    """Note the newest block in this node's data folder and in its log; None if that is noted already, or there is none.

    Never goes back: a file that knows a later block than the database is what `verify` needs to see.
    """
    last = _last_block()
    noted = read_checkpoint()
    if _is_ahead_of_server(last):
        logger.error("Audit log cannot be sealed", extra={"reason": AHEAD})
    if last is None or (noted is not None and noted.number >= last.number):
        return None
    _make_durable()
    mark = Checkpoint(last.number, last.hash)
    path = checkpoint_file()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{mark}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    logger.info("Audit checkpoint", extra={"checkpoint": str(mark)})
    return mark


def _make_durable() -> None:
    """See to it that what is committed survives a power cut; the clock's commits do not wait for the disk.

    Otherwise the file could name a block that the database has lost, and an honest log would look cut off.
    """
    with transaction.atomic() if sql.is_postgresql() else nullcontext(), connection.cursor() as cursor:
        if sql.is_postgresql():
            cursor.execute("SET LOCAL synchronous_commit = on")
            cursor.execute("SELECT pg_logical_emit_message(true, 'k1node', 'audit checkpoint')")
        else:
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")  # which syncs the write-ahead log first


def read_checkpoint() -> Checkpoint | None:
    """Return what the data folder says; None without a file. Raises ValueError if it is damaged."""
    try:
        return Checkpoint.read(checkpoint_file().read_text())
    except FileNotFoundError:
        return None


# --- pruning --------------------------------------------------------------------------------------------------------
def prune(before: datetime, *, now: datetime) -> int:
    """Delete the oldest blocks that were sealed before `before`, with their records; return how many records.

    The newest block is kept, whatever its age: the next one follows it. What does not verify is kept too, for whoever
    has to find out why.
    """
    if not AuditBlock.objects.filter(sealed_at__lt=before).exists():
        return 0

    def work() -> int:
        if sql.is_postgresql() and not _locked():
            return 0
        pruned = _pruned()
        follows, place = (pruned.seal, pruned.place) if pruned else (START, (0, 0))
        last, ids = None, list[int]()
        for block in _oldest(before):
            records = list(_records(place, _place(block), BLOCK_MOST + 1))
            if not _fits(block, follows, records):
                logger.error("Audit log not pruned: a block does not verify", extra={"block": block.number})
                break
            last, follows, place = block, block.hash, _place(block)
            ids += [record.place[1] for record in records]
        if last is None:
            return 0
        AuditPruning.objects.create(through=last.number)
        AuditRecord.objects.filter(pk__in=ids).delete()
        AuditBlock.objects.filter(number__lte=last.number).delete()
        AuditPruning.objects.all().delete()
        trail.record(
            PRUNED,
            f"block:{last.number}",
            after={
                "through": last.number,
                "seal": last.hash,
                "place": list(place),
                "proof": _proof(last.number, last.hash, place),
            },
            count=len(ids),
            now=now,
        )
        return len(ids)

    return sql.in_transaction(work)


def _oldest(before: datetime) -> list[AuditBlock]:
    """Return the first few blocks, sealed before `before` without a gap: a clock that was wrong stops it there."""
    blocks: list[AuditBlock] = []
    for block in AuditBlock.objects.order_by("number")[: PRUNE_BLOCKS + 1]:
        if block.sealed_at >= before or sum(each.count for each in blocks) >= BLOCK_MOST:
            return blocks
        blocks.append(block)
    return blocks[:-1]  # the newest of all stays


# --- verifying ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, in words."""

    text: str
    block: int | None = None


@dataclass
class Report:
    """What `verify` has seen."""

    blocks: int = 0
    records: int = 0
    unsealed: int = 0
    unsealed_since: datetime | None = None
    newest: Checkpoint | None = None
    findings: list[Finding] | None = None

    @property
    def is_sound(self) -> bool:
        return not self.findings


MOST_FINDINGS = 20
UNSEALED_MOST = 10_000


def verify(*marks: Checkpoint) -> Report:
    """Walk the whole chain, one block's records at a time. `marks` are blocks that there must be, unless pruned."""
    with _one_moment():
        return _verify(marks)


@contextmanager
def _one_moment() -> Iterator[None]:
    """See the database as it is now, whatever others commit: pruning must not look like a removal."""
    if connection.in_atomic_block:
        yield
    elif sql.is_postgresql():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
    else:
        with connection.cursor() as cursor:
            # Not Django's transaction, which would keep everybody else from writing.
            cursor.execute("BEGIN DEFERRED")
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")


def _verify(marks: Sequence[Checkpoint]) -> Report:
    report, findings = Report(), list[Finding]()
    report.findings = findings
    pruned = _pruned()
    follows, place, number = START, (0, 0), 0
    if pruned is not None:
        number, follows, place = pruned.number, pruned.seal, pruned.place
        if any(_records((0, 0), place, 1)):
            findings.append(Finding("there are records from before what was pruned: they were added later"))
    wanted = {mark.number: mark for mark in marks}
    for block in AuditBlock.objects.order_by("number").iterator(chunk_size=500):
        if len(findings) >= MOST_FINDINGS:
            break
        if block.number != number + 1:
            gap = f"blocks {number + 1} to {block.number - 1} are missing" if block.number > number else "out of order"
            findings.append(Finding(f"{gap}: removed", block.number))
        records = list(_records(place, _place(block), BLOCK_MOST + 1))
        report.blocks, report.records = report.blocks + 1, report.records + len(records)
        if len(records) != block.count:
            what = "removed" if len(records) < block.count else "added"
            findings.append(Finding(f"has {len(records)} records instead of {block.count}: {what}", block.number))
        elif not _fits(block, follows, records):
            findings.append(
                Finding(
                    "does not fit its records or the block before it: changed or moved, among the records"
                    f" {place[1] + 1} to {block.last_id}",
                    block.number,
                )
            )
        mark = wanted.pop(block.number, None)
        if mark is not None and mark.hash != block.hash:
            findings.append(Finding("is not the block that the checkpoint names: written anew", block.number))
        number, follows, place = block.number, block.hash, _place(block)
    report.newest = Checkpoint(number, follows) if number else None
    if _is_ahead_of_server(_last_block()):
        findings.append(Finding(AHEAD))
    for mark in wanted.values():
        if mark.number > number:
            findings.append(
                Finding(f"the log ends at block {number}, but there was a block {mark.number}: cut off", mark.number)
            )
    waiting = list(_records(place, None, UNSEALED_MOST))
    report.unsealed = len(waiting)
    if waiting:
        report.unsealed_since = AuditRecord.objects.filter(pk=waiting[0].place[1]).values_list("at", flat=True).first()
    return report


@dataclass(frozen=True, slots=True)
class _Pruned:
    """The last block that pruning has deleted."""

    number: int
    seal: str
    place: Place


def _pruned() -> _Pruned | None:
    """Return what the latest record of pruning says, of those that the node itself has written."""
    found = AuditRecord.objects.filter(action=PRUNED, after__isnull=False).order_by("-id")
    said: Any
    for said in found.values_list("after", flat=True).iterator(chunk_size=100):
        try:
            through, seal_, (xid, pk) = said["through"], said["seal"], said["place"]
            if hmac.compare_digest(said["proof"], _proof(through, seal_, (xid, pk))):
                return _Pruned(through, seal_, (xid, pk))
        except (KeyError, TypeError, ValueError):
            continue  # forged, and so told by the blocks that are not there
    return None


def _fits(block: AuditBlock, follows: str, records: list[_Record]) -> bool:
    return len(records) == block.count and hmac.compare_digest(
        _hash(block.number, follows, block.sealed_at, records), block.hash
    )


def is_late(report: Report, *, now: datetime, after: timedelta = timedelta(minutes=1)) -> bool:
    """Say whether records wait longer for their seal than a running clock lets them."""
    return report.unsealed_since is not None and now - report.unsealed_since > after
