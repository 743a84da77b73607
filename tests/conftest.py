"""What every test may ask for, and the environment the settings see.

Which database the tests run on is decided by the run: SQLite in a fresh folder, or PostgreSQL where DB_HOST names one
(`python -m tests.both` does one after the other). A test that only needs rows takes `@pytest.mark.django_db`: it runs
in a transaction that is rolled back. A test with threads, processes or commits of its own takes
`@pytest.mark.django_db(transaction=True)`: it commits, and costs a few milliseconds more because all tables are emptied
after it. The retry policies that a migration adds are there in both kinds.
"""

import gc
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

NODE_TESTS = Path(__file__).parent / "node"
MORE_SETTINGS = {"NODE_ENV", "ALLOWED_HOSTS", "PORT", "DEFAULT_FROM_EMAIL"}
PREFIXES = ("K1NODE_", "EMAIL_", "JWT_", "RATE_LIMIT_", "WEBHOOK_")


def _prepare_environment() -> Path:
    """Set what the settings read, the same on every machine, and return this process's own data folder."""
    # A worker's folder lies in its controller's, which is removed at the end even if the worker was killed.
    parent = os.environ.get("K1NODE_DATA") if "PYTEST_XDIST_WORKER" in os.environ else None
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name in MORE_SETTINGS:
            del os.environ[name]
    data = Path(tempfile.mkdtemp(prefix="k1node-test-", dir=parent))
    if servers := [host for host in os.environ.get("K1_TEST_DB_HOSTS", "").split(",") if host]:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.environ["DB_HOST"] = servers[worker % len(servers)]
    os.environ.update(
        DJANGO_SETTINGS_MODULE="k1node.settings",
        K1NODE_DATA=str(data),
        SECRET_KEY="only-for-tests-" + "0123456789abcdef" * 3,
        K1NODE_AUDIT_KEY="only-for-tests-" + "fedcba9876543210" * 3,
        K1NODE_KEYRING="b25seS1mb3ItdGVzdHMtb25seS1mb3ItdGVzdHMtb24=",
        JWT_SECRET="only-for-tests-of-tokens-" + "fedcba9876543210" * 3,
        ALLOWED_HOSTS="testserver,localhost,127.0.0.1",
        # Out of the way; tests of the limits set their own.
        RATE_LIMIT_REQUESTS="10000000",
        RATE_LIMIT_BURST="10000000",
    )
    return data


if "k1node.settings" in sys.modules:
    raise pytest.UsageError(
        "Unset DJANGO_SETTINGS_MODULE: the settings were read before the tests' environment was set."
    )
DATA = _prepare_environment()

import django  # noqa: E402
from django.conf import settings as django_settings  # noqa: E402
from django.core.cache import caches  # noqa: E402
from django.test import Client, TransactionTestCase  # noqa: E402

# Passwords cost nothing here; secrets of applications are hashed as ever.
django_settings.PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher",
    django_settings.PASSWORD_HASHERS[-1],
]
_database: dict[str, Any] = django_settings.DATABASES["default"]
if _database["ENGINE"] == "k1node.lib.sqlite":
    # A file, as in a real node: threads, processes and the write lock would behave otherwise in memory.
    _database["TEST"] = {"NAME": str(DATA / "test.sqlite3")}
    _database["OPTIONS"]["init_command"] += "PRAGMA synchronous=OFF;"
django.setup()
# The workers of pytest-xdist inherit the environment, and pytest-django would read the settings before this file.
del os.environ["DJANGO_SETTINGS_MODULE"]

from pytest_django import Settings  # noqa: E402
from rest_framework.test import APIClient  # noqa: E402
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]  # noqa: E402

from k1node.lib.board import Board  # noqa: E402
from tests import databases, event_shapes  # noqa: E402

# Thousands of tests leave little garbage among much that stays: looking for it as often as usual costs a twentieth.
gc.set_threshold(100_000, 20, 50)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what belongs to the other database, and see that `make test-node` finds all of its tests.

    What uses no database says the same beside each: the run on SQLite has it.
    """
    for item in items:
        if bool(item.get_closest_marker("node")) != (NODE_TESTS in item.path.parents):
            raise pytest.UsageError(f"{item.nodeid}: tests marked node live in tests/node, and no others do")
    other = "sqlite" if databases.ON_POSTGRESQL else "postgresql"
    chosen = [item for item in items if not item.get_closest_marker(other) and not _is_told_already(item)]
    kept = set(chosen)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = chosen


# About pages, messages and documents: that the queries behind them run on both databases is seen by test_admin, which
# opens every page, and by the tests of what they show.
ABOUT_LOOKS = re.compile(
    r"test_.+_admin(_.+)?\.py|test_admin_.+\.py|test_api_(errors|middleware|serializers|versions|schema|document|parsers)\.py"
    r"|test_(sign_in|demo|asgi_guard|openapi)\.py"
)

# About processes more than about the database; with K1_TEST_PROCESSES_ONCE, as CI has it, they run on SQLite alone.
ABOUT_PROCESSES = ("test_end.py", "test_kill_matrix.py", "test_sender.py", "test_up.py")


def _is_told_already(item: pytest.Item) -> bool:
    """Say whether the run on SQLite has shown all that this test can show."""
    if not databases.ON_POSTGRESQL or any(item.get_closest_marker(mark) for mark in ("contract", "postgresql")):
        return False
    if item.get_closest_marker("node"):
        return item.path.name in ABOUT_PROCESSES and bool(os.environ.get("K1_TEST_PROCESSES_ONCE"))
    uses_database = item.get_closest_marker("django_db") or {"db", "transactional_db"} & set(item.fixturenames)  # type: ignore[attr-defined]
    is_page = item.path.name == "test_admin.py" and item.path.parent.name != "k1node"
    return not uses_database or is_page or ABOUT_LOOKS.fullmatch(item.path.name) is not None


def pytest_unconfigure() -> None:
    shutil.rmtree(DATA, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _cheap_emptying() -> None:
    TransactionTestCase._fixture_teardown = lambda self: databases.empty()  # type: ignore[attr-defined]


@pytest.fixture(scope="session", autouse=True)
def _events_as_described() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        event_shapes.hold_against_the_catalogue(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_look_at_the_static_files() -> None:
    """Have the files on disk looked at once: every test client builds the middleware anew, most of a request's time."""
    look = WhiteNoiseMiddleware.add_files_from_finders
    seen: dict[str, dict[str, Any]] = {}

    def add(middleware: WhiteNoiseMiddleware) -> None:
        if middleware.static_prefix not in seen:
            look(middleware)
            seen[middleware.static_prefix] = dict(middleware.files)
        middleware.files.update(seen[middleware.static_prefix])

    WhiteNoiseMiddleware.add_files_from_finders = add


@pytest.fixture(scope="session", autouse=True)
def _limits_in_their_file() -> None:
    """Count requests in the file that SQLite's nodes have: so no test needs a database, or has a query, for that alone.

    Tests of the limits take the table that PostgreSQL's nodes have.
    """
    from k1node.access import buckets

    buckets.is_postgresql = lambda: False  # type: ignore[assignment, attr-defined]


@pytest.fixture
def now() -> datetime:
    """Return a fixed moment: a Wednesday, with microseconds."""
    return datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


@pytest.fixture
def api_client(db: None) -> Callable[..., APIClient]:
    """Return a maker of clients: api_client("scheduler:read", …) sends a real key with these scopes.

    Give it no scope at all for a client without a key.
    """
    from k1node.access import keys

    def make(*scopes: str) -> APIClient:
        client = APIClient()
        if scopes:
            _key, text = keys.issue("test", scopes)
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
        return client

    return make


@pytest.fixture
def operator(db: None) -> Callable[..., Client]:
    """Return a maker of clients signed in as staff, as "ana", with the named permissions."""
    from django.contrib.auth.models import Permission, User

    def make(*codenames: str) -> Client:
        user, _ = User.objects.get_or_create(username="ana", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client = Client()
        client.force_login(user)
        return client

    return make


@pytest.fixture(autouse=True)
def _uncounted() -> None:
    """Forget what the tests before have tried; on PostgreSQL the counts go with all other rows."""
    if not databases.ON_POSTGRESQL:
        caches["default"].clear()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Return a node's board of this test's own."""
    yield Board(tmp_path / "board")


class HandlerRoot:
    """A folder of handler scripts; `write` returns the handler text that runs the new script."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, body: str, *, interpreter: str = "bash") -> str:
        script = self.path / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(body if body.startswith("#!") else f"#!/usr/bin/env {interpreter}\n{body}\n")
        script.chmod(0o755)
        return f"{interpreter} {name}"


@pytest.fixture
def handler_root(tmp_path: Path, settings: Settings) -> HandlerRoot:
    """Return a folder that the node runs handlers from."""
    root = tmp_path / "handlers"
    root.mkdir()
    settings.K1NODE_HANDLER_ROOT = root
    return HandlerRoot(root)


@pytest.fixture
def rival() -> Iterator[databases.Rival]:
    """Return a second database session, in a thread of its own."""
    session = databases.Rival()
    yield session
    session.close()


@pytest.fixture
def node_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a real node of this test's own: a free port, a data folder, an empty database.

    For tests marked `node`. Processes started with it see nothing of the test's own database, which is another.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with databases.fresh() as reach:
        yield os.environ | reach | {"K1NODE_DATA": str(tmp_path / "data"), "PORT": port, "ALLOWED_HOSTS": "127.0.0.1"}
