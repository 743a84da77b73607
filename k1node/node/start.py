"""What `manage.py up` does once before it starts anything: one node a folder, the tables, the first operator."""

import ctypes
import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from k1node.lib import ids

LOCK_NAME = "up.lock"
MIGRATION_LOCK = 0x4B31_4E4F_4445  # "K1NODE", a key for PostgreSQL's advisory locks
DATABASE_SECONDS = 60.0  # a database that starts beside this node gets this long
LOCK_POLL_SECONDS = 0.5
OPERATOR = "operator"
PR_SET_PDEATHSIG = 1


class AlreadyRunning(Exception):
    """Another `up` runs on the same data folder."""


def lock_data_folder(folder: Path) -> int:
    """Claim `folder` for this process and return the descriptor that holds the claim until it dies.

    Raises AlreadyRunning, with the holder's pid in its text.
    """
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode().strip() or "unknown"
        os.close(descriptor)
        raise AlreadyRunning(
            f"A node already runs on {folder} (process {holder}). Stop it first, or give this one a folder of its own"
            " in K1NODE_DATA."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child and return its exit code; what it opens and imports does not stay here.

    SIGTERM ends the child, and so does the end of this process: work that nobody waits for must not go on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _end_with(me)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except (CommandError, OperationalError) as error:
            print(error, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    # Not left to the default, which for the first process of a container is to hear nothing.
    before = signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(pid, number))
    try:
        _pid, status = os.waitpid(pid, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_with(parent: int) -> None:
    """Have the kernel send this process SIGTERM when `parent` is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def prepare_database(say: Callable[[str], None]) -> None:
    """Check the configuration, migrate, and see that stored secrets can be read and that somebody can sign in.

    Many nodes may call it at once. Raises CommandError.
    """
    # Models can be imported only where Django is set up, which the parent of this process need not be.
    from webhooks import stored_secrets

    keep_private()
    wait_for_database(say)
    with migration_lock(say):
        call_command("migrate", interactive=False, verbosity=0, skip_checks=False)
        if problem := stored_secrets.why_not_start():
            raise CommandError(problem)
        password = create_first_operator(say)
    connection.close()
    if password is not None:
        say(
            f"\n  First operator    {OPERATOR}\n  Password          {password}\n  Sign in           {console_url()}\n"
            "  It is shown only this once; change it after signing in, or with: manage.py changepassword operator\n"
        )


def keep_private() -> None:
    """Make a new SQLite file its owner's alone; what SQLite lays beside it takes its mode from it.

    It holds sessions and whatever tasks are given, and a data folder made by hand may be open to all.
    """
    if connection.vendor == "sqlite":
        Path(connection.settings_dict["NAME"]).touch(mode=0o600)


def wait_for_database(say: Callable[[str], None]) -> None:
    """Return once the database answers; raise OperationalError when it has not within a minute."""
    until = time.monotonic() + DATABASE_SECONDS
    said = False
    while True:
        try:
            connection.ensure_connection()
            return
        except OperationalError as error:
            if time.monotonic() > until:
                raise
            if not said:
                say(f"Waiting for the database: {error}".rstrip())
                said = True
            time.sleep(1)


@contextmanager
def migration_lock(say: Callable[[str], None]) -> Iterator[None]:
    """Keep other nodes from migrating the same PostgreSQL; a SQLite lies in the data folder, which is locked."""
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        said = False
        while True:
            # Asking again instead of waiting inside the database: a waiting statement would hold up CREATE INDEX
            # CONCURRENTLY, which the holder may be at.
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [MIGRATION_LOCK])
            if cursor.fetchone()[0]:
                break
            if not said:
                say("Another node is migrating the database; waiting for it.")
                said = True
            time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])


def create_first_operator(say: Callable[[str], None] = print) -> str | None:
    """Make a superuser and return its password; None when there is one already or the name is somebody else's."""
    users = get_user_model()._default_manager
    if users.filter(is_superuser=True).exists():
        return None
    if users.filter(username=OPERATOR).exists():
        say(f"No superuser exists, and '{OPERATOR}' is an ordinary user. Make one: manage.py createsuperuser")
        return None
    password = ids.random_part(20)
    users.create_superuser(OPERATOR, password=password)
    return password


def console_url() -> str:
    """Return where an operator signs in, as seen from this machine or, behind a proxy, from outside."""
    if settings.HTTPS and settings.ALLOWED_HOSTS and settings.ALLOWED_HOSTS[0][0] not in "*.":
        return f"https://{settings.ALLOWED_HOSTS[0]}/admin/"
    host = "localhost" if settings.K1NODE_BIND in ("0.0.0.0", "::", "127.0.0.1") else settings.K1NODE_BIND
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.PORT}/admin/"


def banner() -> str:
    """Return what an operator wants to see at the start."""
    database = connection.settings_dict
    if connection.vendor == "postgresql":
        where = f"PostgreSQL, {database['NAME']} on {database['HOST']}:{database['PORT']}"
    else:
        where = f"SQLite, {database['NAME']}"
    return "\n".join(
        (
            "K1.Node is starting. Ctrl-C stops it.",
            f"  Console     {console_url()}",
            f"  Data        {settings.K1NODE_DATA}",
            f"  Database    {where}",
            f"  Limits      {settings.K1NODE_MAX_CONCURRENT} tasks at once in {settings.K1NODE_WORKERS} workers,"
            f" CPU {_limit(settings.K1NODE_MAX_CPU_PERCENT)}, memory {_limit(settings.K1NODE_MAX_MEMORY_PERCENT)}",
            f"  At a stop   what runs gets {settings.K1NODE_DRAIN_SECONDS} s to end",
        )
    )


def _limit(percent: int) -> str:
    return "without limit" if percent >= 100 else f"up to {percent} %"
