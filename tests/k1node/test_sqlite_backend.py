"""The write lock of the SQLite backend: who waits, who is let in, and what gives it back."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as StillWaiting
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction

from scheduling.models import RetryPolicy
from tests.databases import Rival, only_sqlite

pytestmark = [only_sqlite, pytest.mark.django_db(transaction=True)]

SETUP = """
import os, sys
import django
from django.conf import settings
settings.configure(DATABASES={"default": {
    "ENGINE": "k1node.lib.sqlite", "NAME": sys.argv[1], "OPTIONS": {"transaction_mode": "IMMEDIATE"}}})
django.setup()
from django.db import connection, transaction
"""
HOLD = """
with transaction.atomic():
    print("holding", flush=True)
    sys.stdin.readline()
"""
FORK_WHILE_HOLDING = """
transaction.atomic().__enter__()
if os.fork() == 0:
    connection.close()
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    os._exit(0)
sys.stdin.readline()
"""


@contextmanager
def process(script: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `script` beside the test's database; give the process and the first line it says."""
    with subprocess.Popen(
        [sys.executable, "-c", SETUP + script, str(connection.settings_dict["NAME"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


def lock_is_free() -> bool:
    """Say whether a process that came now would be let in at once."""
    file = os.open(Path(connection.settings_dict["NAME"]).parent / "write.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def add_policy(name: str) -> None:
    with transaction.atomic():
        RetryPolicy.objects.create(name=name)


def test_a_writer_waits_until_the_other_has_committed(rival: Rival) -> None:
    with transaction.atomic():
        waiting = rival.start(add_policy, "theirs")
        with pytest.raises(StillWaiting):
            waiting.result(0.1)
        RetryPolicy.objects.create(name="ours")

    waiting.result(5)
    assert RetryPolicy.objects.filter(name__in=("ours", "theirs")).count() == 2


def test_a_reader_does_not_wait_for_a_writer() -> None:
    with process(HOLD) as (_, said):
        assert said == "holding"
        assert not lock_is_free()

        assert RetryPolicy.objects.count() == 3


def test_writers_of_many_sessions_lose_nothing() -> None:
    def increment() -> None:
        for _ in range(20):
            with transaction.atomic():
                policy = RetryPolicy.objects.get(name="counted")
                policy.max_attempts += 1
                policy.save(update_fields=["max_attempts"])

    RetryPolicy.objects.create(name="counted", max_attempts=1)
    rivals = [Rival() for _ in range(4)]

    for running in [each.start(increment) for each in rivals]:
        running.result(20)

    for each in rivals:
        each.close()
    assert RetryPolicy.objects.get(name="counted").max_attempts == 81


def commit() -> None:
    add_policy("new")


def roll_back() -> None:
    with transaction.atomic():
        RetryPolicy.objects.create(name="new")
        transaction.set_rollback(True)


def raise_inside() -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        raise ZeroDivisionError


def close_inside() -> None:
    with transaction.atomic():
        connection.close()


def fail_to_commit() -> None:
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        # The foreign key is checked at the end.
        cursor.execute("INSERT INTO auth_user_groups (user_id, group_id) VALUES (999, 999)")


@pytest.mark.parametrize("end", [commit, roll_back, raise_inside, close_inside, fail_to_commit])
def test_the_lock_is_given_back_however_a_transaction_ends(end: Callable[[], None]) -> None:
    end()

    assert lock_is_free()
    add_policy("the next one")


def test_the_lock_is_given_back_when_the_transaction_cannot_begin(rival: Rival) -> None:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 1")
    rival.execute("BEGIN IMMEDIATE")  # behind the lock's back, as another program would

    with pytest.raises(OperationalError, match="locked"), transaction.atomic():
        pass

    assert lock_is_free()
    rival.execute("ROLLBACK")
    connection.close()


def test_an_exception_from_a_signal_while_waiting_leaves_nothing_held() -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with process(HOLD):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted), transaction.atomic():
                pass
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert lock_is_free()
    add_policy("afterwards")


def test_an_exception_from_a_signal_just_after_the_lock_was_taken_leaves_nothing_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flock = fcntl.flock

    def flock_and_raise(file: int, operation: int) -> None:
        flock(file, operation)
        if operation == fcntl.LOCK_EX:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock_and_raise)
        with pytest.raises(KeyboardInterrupt), transaction.atomic():
            pass

    assert lock_is_free()


@pytest.mark.parametrize("inner_fails", [False, True])
def test_a_nested_transaction_keeps_the_lock_until_the_outer_one_ends(inner_fails: bool) -> None:
    with transaction.atomic():
        RetryPolicy.objects.create(name="outer")
        with suppress(ZeroDivisionError), transaction.atomic():
            RetryPolicy.objects.create(name="inner")
            if inner_fails:
                raise ZeroDivisionError

        assert not lock_is_free()

    assert lock_is_free()
    assert RetryPolicy.objects.filter(name="outer").exists()
    assert RetryPolicy.objects.filter(name="inner").exists() is not inner_fails


def test_the_lock_goes_with_a_holder_that_is_killed(rival: Rival) -> None:
    with process(HOLD) as (holder, _):
        waiting = rival.start(add_policy, "next")
        with pytest.raises(StillWaiting):
            waiting.result(0.1)

        holder.kill()

        waiting.result(5)


def test_a_forked_child_that_closes_its_connection_keeps_its_parents_lock() -> None:
    with process(FORK_WHILE_HOLDING) as (_, child):
        assert int(child)

        assert not lock_is_free()


def test_a_forked_child_that_lives_on_does_not_keep_the_lock_of_its_killed_parent() -> None:
    with process(FORK_WHILE_HOLDING) as (parent, child):
        parent.kill()
        parent.wait()

        assert lock_is_free()
        os.kill(int(child), 0)  # it is there
        os.kill(int(child), signal.SIGKILL)
