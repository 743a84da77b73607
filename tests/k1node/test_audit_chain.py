"""The audit log's seals: what anybody did to it is found, what the node itself does is not mistaken for that."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from pytest_django import Settings

from k1node.audit import chain, trail
from k1node.audit.chain import Checkpoint
from k1node.audit.models import AuditBlock, AuditRecord
from tests.databases import ON_POSTGRESQL, Rival, only_postgresql, only_sqlite

RECORD, BLOCK = "audit_auditrecord", "audit_auditblock"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, settings: Settings) -> None:
    settings.K1NODE_DATA = tmp_path


@pytest.fixture
def sealed(now: datetime) -> datetime:
    """Seal three blocks: of two records, of one, of three."""
    for second, names in enumerate((("a", "b"), ("c",), ("d", "e", "f"))):
        for name in names:
            trail.record("schedule.updated", f"schedule:{name}", before={"priority": 1}, after={"priority": 2}, now=now)
        chain.seal(now=now + timedelta(seconds=second))
    return now + timedelta(seconds=3)


def tampered(statement: str, *values: Any) -> None:
    """Do what an attacker with all rights on the database can do: past the triggers."""
    with transaction.atomic(), connection.cursor() as cursor:
        if ON_POSTGRESQL:
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute(statement, values)
            return
        cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit%%'")
        triggers = cursor.fetchall()
        for name, _ in triggers:
            cursor.execute(f"DROP TRIGGER {name}")
        cursor.execute(statement, values)
        for _, text in triggers:
            cursor.execute(text)


def texts(report: chain.Report) -> str:
    return "; ".join(f"{finding.block}: {finding.text}" for finding in report.findings or ())


def test_a_log_that_nobody_touched_is_sound(sealed: datetime) -> None:
    report = chain.verify()

    assert report.is_sound and (report.blocks, report.records, report.unsealed) == (3, 6, 0)
    assert list(AuditBlock.objects.order_by("number").values_list("number", "count")) == [(1, 2), (2, 1), (3, 3)]


def test_nothing_new_is_no_block(sealed: datetime) -> None:
    assert chain.seal(now=sealed) is None
    assert AuditBlock.objects.count() == 3


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        pytest.param(f"UPDATE {RECORD} SET actor = 'user:9' WHERE target = 'schedule:c'", "2:.*changed", id="edit"),
        pytest.param(f"UPDATE {RECORD} SET after = '{{}}' WHERE target = 'schedule:e'", "3:.*changed", id="of facts"),
        pytest.param(f"UPDATE {RECORD} SET count = 2 WHERE target = 'schedule:a'", "1:.*changed", id="of a count"),
        pytest.param(f"DELETE FROM {RECORD} WHERE target = 'schedule:b'", "1:.*removed", id="removal"),
        pytest.param(f"DELETE FROM {RECORD} WHERE target = 'schedule:c'", "2:.*removed", id="of a whole block"),
        pytest.param(f"DELETE FROM {BLOCK} WHERE number = 2", "3:.*missing", id="of a seal in the middle"),
        pytest.param(f"DELETE FROM {BLOCK} WHERE number = 1", "2:.*missing", id="of the first seal"),
        pytest.param(f"UPDATE {BLOCK} SET count = 1 WHERE number = 1", "1:.*added", id="of a seal's count"),
        pytest.param(f"UPDATE {BLOCK} SET hash = '{'a' * 64}' WHERE number = 2", "2:.*changed", id="of a seal's hash"),
        pytest.param(f"UPDATE {BLOCK} SET sealed_at = '2020-01-01' WHERE number = 1", "1:.*changed", id="of its age"),
        pytest.param(
            f"UPDATE {RECORD} SET target = CASE target WHEN 'schedule:d' THEN 'schedule:e' ELSE 'schedule:d' END"
            " WHERE target IN ('schedule:d', 'schedule:e')",
            "3:.*changed or moved",
            id="two records that changed places",
        ),
    ],
)
def test_what_was_done_to_it_is_found(sealed: datetime, statement: str, said: str) -> None:
    tampered(statement)

    report = chain.verify()

    assert not report.is_sound
    assert re.search(said, texts(report)), texts(report)


def test_two_seals_that_changed_places_are_found(sealed: datetime) -> None:
    first, second = AuditBlock.objects.order_by("number")[:2]
    tampered("UPDATE audit_auditblock SET hash = %s WHERE number = 1", second.hash)
    tampered("UPDATE audit_auditblock SET hash = %s WHERE number = 2", first.hash)

    assert "1: does not fit" in texts(chain.verify())


def test_a_record_put_between_sealed_ones_is_found(sealed: datetime, now: datetime) -> None:
    last = AuditRecord.objects.order_by("-id").values_list("id", flat=True)[0]
    trail.record("schedule.updated", "schedule:forged", now=now)
    tampered("DELETE FROM audit_auditrecord WHERE target = 'schedule:d'")
    where = ", xid = (SELECT xid FROM audit_auditrecord WHERE target = 'schedule:e')" if ON_POSTGRESQL else ""
    tampered(f"UPDATE audit_auditrecord SET id = {last - 2}{where} WHERE target = 'schedule:forged'")

    assert "3: does not fit" in texts(chain.verify())


def test_a_seal_made_without_the_key_does_not_fit(sealed: datetime, settings: Settings) -> None:
    settings.K1NODE_AUDIT_KEY = "guessed by somebody who wants to write the chain anew"

    assert "1: does not fit" in texts(chain.verify())


def test_a_cut_at_the_end_is_told_by_the_checkpoint_alone(sealed: datetime) -> None:
    mark = chain.write_checkpoint()
    tampered("DELETE FROM audit_auditrecord WHERE target IN ('schedule:d', 'schedule:e', 'schedule:f')")
    tampered("DELETE FROM audit_auditblock WHERE number = 3")

    assert chain.verify().is_sound
    assert mark is not None and "3: the log ends at block 2" in texts(chain.verify(mark))


def test_a_chain_written_anew_does_not_have_the_checkpoint(sealed: datetime) -> None:
    assert "3: is not the block that the checkpoint names" in texts(chain.verify(Checkpoint(3, "0" * 64)))


def test_the_checkpoint_never_goes_back(sealed: datetime) -> None:
    mark = chain.write_checkpoint()
    tampered("DELETE FROM audit_auditblock WHERE number = 3")

    assert chain.write_checkpoint() is None
    assert chain.read_checkpoint() == mark
    assert chain.checkpoint_file().stat().st_mode & 0o777 == 0o600


# --- the database itself --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: AuditRecord.objects.update(actor="user:9"), id="update of records"),
        pytest.param(lambda: AuditRecord.objects.all()._raw_delete("default"), id="delete of records"),
        pytest.param(lambda: AuditBlock.objects.update(count=1), id="update of seals"),
        pytest.param(lambda: AuditBlock.objects.all()._raw_delete("default"), id="delete of seals"),
    ],
)
def test_the_log_only_grows(sealed: datetime, change: Callable[[], object]) -> None:
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        change()

    assert chain.verify().is_sound


@only_sqlite
@pytest.mark.parametrize(("table", "key"), [(RECORD, "id"), (BLOCK, "number")])
def test_nothing_is_replaced_by_an_insert(sealed: datetime, table: str, key: str) -> None:
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} ORDER BY {key} LIMIT 1")

    assert chain.verify().is_sound


@only_postgresql
def test_the_log_cannot_be_truncated(sealed: datetime) -> None:
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("TRUNCATE audit_auditrecord")


# --- several at once ------------------------------------------------------------------------------------------------
@only_postgresql
def test_a_record_that_commits_late_is_sealed_late_and_never_stepped_over(rival: Rival, now: datetime) -> None:
    rival.do(lambda: transaction.set_autocommit(False))
    rival.do(lambda: trail.record("key.issued", "key:slow", now=now))
    trail.record("key.issued", "key:fast", now=now)

    before = chain.seal(now=now)
    rival.do(transaction.commit)
    rival.do(lambda: transaction.set_autocommit(True))
    after = chain.seal(now=now)

    assert before is None  # the fast one comes after the slow one in the order, and must wait for it
    assert after is not None and after.count == 2
    assert chain.verify().is_sound


@only_postgresql
def test_of_two_clocks_one_seals(rival: Rival, now: datetime) -> None:
    trail.record("key.issued", "key:1", now=now)
    rival.execute("BEGIN")
    rival.execute("SELECT pg_advisory_xact_lock(%s)", [chain.LOCK])

    assert chain.seal(now=now) is None

    rival.execute("COMMIT")
    assert chain.seal(now=now) is not None


# --- pruning --------------------------------------------------------------------------------------------------------
def test_old_blocks_go_with_their_records_and_the_rest_still_verifies(sealed: datetime, now: datetime) -> None:
    gone = chain.prune(now + timedelta(seconds=2), now=sealed)
    chain.seal(now=sealed)

    assert gone == 3
    assert list(AuditRecord.objects.order_by("id").values_list("target", flat=True)) == [
        "schedule:d",
        "schedule:e",
        "schedule:f",
        "block:2",
    ]
    report = chain.verify()
    assert report.is_sound and (report.blocks, report.newest and report.newest.number) == (2, 4)


def test_the_newest_block_stays_whatever_its_age(sealed: datetime) -> None:
    chain.prune(sealed + timedelta(days=400), now=sealed)

    assert list(AuditBlock.objects.values_list("number", flat=True)) == [3]


def test_a_cut_at_the_beginning_is_not_taken_for_pruning(sealed: datetime, now: datetime) -> None:
    chain.prune(now + timedelta(seconds=1), now=sealed)
    chain.seal(now=sealed)
    tampered("DELETE FROM audit_auditrecord WHERE target = 'schedule:c'")
    tampered("DELETE FROM audit_auditblock WHERE number = 2")

    assert "3: blocks 2 to 2 are missing" in texts(chain.verify())


def test_a_cut_at_the_beginning_with_a_record_that_says_pruning_is_found(sealed: datetime, now: datetime) -> None:
    second = AuditBlock.objects.get(number=2)
    said = {"through": 2, "seal": second.hash, "place": [second.last_xid, second.last_id]}
    trail.record(chain.PRUNED, "block:2", after=said, now=now)
    trail.record(chain.PRUNED, "block:2", after={**said, "proof": "0" * 64}, now=now)
    trail.record(chain.PRUNED, "block:2", after={"through": "nonsense"}, now=now)
    tampered("DELETE FROM audit_auditrecord WHERE target IN ('schedule:a', 'schedule:b', 'schedule:c')")
    tampered("DELETE FROM audit_auditblock WHERE number <= 2")
    chain.seal(now=sealed)

    assert "3: blocks 1 to 2 are missing" in texts(chain.verify())


def test_what_does_not_verify_is_not_pruned_away(sealed: datetime, now: datetime) -> None:
    tampered("UPDATE audit_auditblock SET sealed_at = '2020-01-01' WHERE number <= 2")

    assert chain.prune(now - timedelta(days=365), now=sealed) == 0
    assert AuditBlock.objects.count() == 3


def test_pruning_again_goes_on_where_it_stopped(sealed: datetime, now: datetime) -> None:
    assert chain.prune(now + timedelta(seconds=1), now=sealed) == 2
    assert chain.prune(now + timedelta(seconds=2), now=sealed) == 1
    chain.seal(now=sealed)

    assert chain.verify().is_sound


def test_a_block_without_records_is_found(sealed: datetime) -> None:
    tampered("DELETE FROM audit_auditrecord WHERE target = 'schedule:c'")
    tampered("UPDATE audit_auditblock SET count = 0 WHERE number = 2")

    assert "2: does not fit" in texts(chain.verify())


def test_pruning_while_it_is_verified_is_not_taken_for_a_removal(
    sealed: datetime, now: datetime, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = chain._fits

    def and_then_the_clock_prunes(*args: Any) -> bool:
        monkeypatch.setattr(chain, "_fits", fits)
        assert rival.do(chain.prune, now + timedelta(seconds=2), now=sealed) == 3
        rival.do(chain.seal, now=sealed)
        return fits(*args)

    monkeypatch.setattr(chain, "_fits", and_then_the_clock_prunes)

    assert texts(chain.verify()) == ""
    assert texts(chain.verify()) == ""


@only_postgresql
def test_a_log_from_a_server_with_higher_transaction_numbers_is_told(
    sealed: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    tampered("UPDATE audit_auditblock SET last_xid = 1000000000000 WHERE number = 3")

    chain.write_checkpoint()

    assert "comes from a server with higher transaction numbers" in texts(chain.verify())
    assert "Audit log cannot be sealed" in caplog.text


# --- the command ----------------------------------------------------------------------------------------------------
def said_by_command(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("audit_verify", *arguments, stdout=out, stderr=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_the_command_says_that_all_is_well(sealed: datetime) -> None:
    chain.write_checkpoint()
    trail.record("key.issued", "key:1", now=sealed)

    code, text = said_by_command()

    assert code == 0
    assert "3 blocks over 6 records." in text and "Nothing was changed." in text
    assert "1 records wait to be sealed" in text and "is the clock running?" in text


def test_the_command_fails_and_names_the_place(sealed: datetime) -> None:
    mark = chain.write_checkpoint()
    tampered("UPDATE audit_auditrecord SET actor = 'user:9' WHERE target = 'schedule:c'")

    code, text = said_by_command("--checkpoint", str(mark))

    assert code == 1 and "Block 2: does not fit its records" in text


def test_the_command_refuses_nonsense_for_a_checkpoint(sealed: datetime) -> None:
    from django.core.management import CommandError

    with pytest.raises(CommandError, match="NUMBER:HASH"):
        call_command("audit_verify", "--checkpoint", "three")


def test_a_damaged_checkpoint_is_said_and_not_believed(sealed: datetime) -> None:
    chain.checkpoint_file().write_text("nonsense")

    code, text = said_by_command()

    assert code == 0 and "is damaged" in text
