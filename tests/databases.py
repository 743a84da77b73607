"""The database that tests run on: which one it is, how to empty it and how to use it from several threads."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import psycopg
import pytest
from django.db import connection, transaction

Args = ParamSpec("Args")
Result = TypeVar("Result")

ON_POSTGRESQL = connection.vendor == "postgresql"
# Of the two runs, the one on the other database does not collect these: nothing is skipped.
only_postgresql = pytest.mark.postgresql
only_sqlite = pytest.mark.sqlite

# Filled by migrations; the same for every test.
KEPT = {"django_migrations", "django_content_type", "auth_permission"}


def add_policies() -> None:
    """Add the rows that migrations gave to a new database and that emptying it took away."""
    from scheduling.models import RetryPolicy

    policies = import_module("scheduling.migrations.0002_policies").POLICIES
    names = ("name", "max_attempts", "first_wait_ms", "multiplier", "cap_ms", "jitter")
    RetryPolicy.objects.bulk_create(
        [RetryPolicy(**dict(zip(names, row, strict=True))) for row in policies], ignore_conflicts=True
    )


def empty() -> None:
    """Delete every row that a test may have committed, and add the policies again.

    Much cheaper than the flush command: no TRUNCATE, and no permissions to make anew.
    """
    tables = sorted(set(connection.introspection.table_names()) - KEPT)
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL session_replication_role = replica")  # no foreign keys
        else:
            cursor.execute("PRAGMA defer_foreign_keys = on")
        # What makes the audit log append-only lets whoever prunes through; its own rows go last.
        cursor.execute("INSERT INTO audit_auditpruning (through) VALUES (0)")
        for table in sorted(tables, key="audit_auditpruning".__eq__):
            cursor.execute(f'DELETE FROM "{table}"')
        add_policies()


@contextmanager
def fresh(template: str = "template1") -> Iterator[dict[str, str]]:
    """Give the environment that leads other processes to a new database of the kind this run is about.

    It is empty, or on PostgreSQL what the database `template` is. On SQLite the environment says nothing: their
    database comes with their data folder.
    """
    if not ON_POSTGRESQL:
        yield {}
        return
    reach = connection.settings_dict
    name = f"node_{secrets.token_hex(4)}"
    with psycopg.connect(
        host=reach["HOST"],
        port=reach["PORT"],
        user=reach["USER"],
        password=reach["PASSWORD"],
        dbname="postgres",
        autocommit=True,
    ) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        try:
            names = {"DB_HOST": "HOST", "DB_PORT": "PORT", "DB_USER": "USER", "DB_PASSWORD": "PASSWORD"}
            found = {variable: str(reach[key]) for variable, key in names.items() if reach[key]}
            yield found | {"DB_NAME": name}
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


class Rival:
    """A second session of the database: a thread with a connection of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def start(self, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """Begin `work` and return at once."""
        return self._pool.submit(work, *args, **kwargs)

    def do(self, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Return what `work` gives; it may take ten seconds at the most."""
        return self._pool.submit(work, *args, **kwargs).result(10)

    def execute(self, statement: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows, none where it has no result."""

        def run() -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

        return self.do(run)

    def close(self) -> None:
        # connection.close, looked up here, would be that of the calling thread.
        self._pool.submit(lambda: connection.close()).result(10)
        self._pool.shutdown()
