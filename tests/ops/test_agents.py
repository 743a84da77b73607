"""The sample handlers, run for real: each test starts the script as a worker would, with an environment of its own."""

import csv
import gzip
import json
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from pytest_django import Settings

from scheduling import execution, handlers
from scheduling.execution.control import Control
from scheduling.outcomes import OutcomeKind

AGENTS = Path(__file__).parents[2] / "ops" / "agents"
SCRIPTS = sorted(path.name for path in AGENTS.glob("*.sh"))
TASK = "backup-20260304T050000Z"
TOKEN = "kt-only-for-this-test"
# What would run, escape or overwrite something if any of it reached a shell, a path, SQL or a URL as it is.
HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "1 | touch PWNED",
    "'; DROP TABLE scheduling_task; --",
    "../../outside",
]


class Run(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data folder"
    folder.mkdir()
    return folder


@pytest.fixture
def agent(data: Path, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that runs a sample with variables beside the ones every command gets."""
    where = tmp_path / "where"
    where.mkdir()

    def run(script: str, *, stdin: str = "{}", **variables: str) -> Run:
        environment = {"PATH": os.environ["PATH"], "K1_PYTHON": sys.executable, "K1NODE_DATA": str(data)}
        done = subprocess.run(
            ["bash", str(AGENTS / script)],
            env=environment | variables,
            cwd=where,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not any(tmp_path.rglob("*PWNED*")), "a parameter was run"
        return Run(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def database(data: Path) -> Iterator[sqlite3.Connection]:
    """Return an open connection to a node's database with one running task; its last write is in the WAL only."""
    with closing(sqlite3.connect(data / "k1node.sqlite3", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE scheduling_task (id INTEGER PRIMARY KEY, task_id TEXT, status TEXT)")
        connection.execute("INSERT INTO scheduling_task (task_id, status) VALUES (?, 'executing')", [TASK])
        yield connection


def backups(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "backups").glob("*.gz"))


def unpacked(backup: Path, into: Path) -> sqlite3.Connection:
    with gzip.open(backup) as packed, into.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return sqlite3.connect(into)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_sample_is_a_handler_this_node_accepts(script: str) -> None:
    parsed = handlers.parse(f"bash ops/agents/{script}")

    assert stat.S_IMODE((AGENTS / script).stat().st_mode) == 0o755
    assert isinstance(parsed, handlers.CommandHandler)
    assert (AGENTS / script).read_text().startswith("#!/usr/bin/env bash\n# ")


# --- backup -----------------------------------------------------------------------------------------------------


def test_a_backup_opens_and_holds_what_was_committed(
    agent: Callable[..., Run], data: Path, database: sqlite3.Connection, tmp_path: Path
) -> None:
    database.execute("BEGIN IMMEDIATE")  # a writer at work neither waits nor shows
    database.execute("INSERT INTO scheduling_task (task_id, status) VALUES ('uncommitted', 'queued')")

    run = agent("backup.sh", K1_TASK_ID=TASK)

    database.execute("ROLLBACK")
    assert (run.code, run.err) == (0, "")
    (name,) = backups(data)
    backup = data / "backups" / name
    assert f"Wrote {backup}\n" in run.out
    assert f"{backup.stat().st_size:,} compressed" in run.out
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with closing(unpacked(backup, tmp_path / "restored.sqlite3")) as restored:
        assert restored.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert restored.execute("SELECT task_id FROM scheduling_task").fetchall() == [(TASK,)]


def test_a_backup_leaves_nothing_else_behind(
    agent: Callable[..., Run], data: Path, database: sqlite3.Connection
) -> None:
    (data / "backups").mkdir()
    (data / "backups" / ".part-k1node-of-a-killed-run").write_text("half")

    agent("backup.sh")

    assert sorted(path.name for path in (data / "backups").iterdir()) == [".lock", *backups(data)]


def test_the_newest_backups_are_kept_and_other_files_left_alone(
    agent: Callable[..., Run], data: Path, database: sqlite3.Connection
) -> None:
    folder = data / "backups"
    folder.mkdir()
    for day in range(1, 6):
        (folder / f"k1node-2026010{day}T020000Z.sqlite3.gz").write_text("old")
    (folder / "before-the-upgrade.sqlite3.gz").write_text("by hand")

    run = agent("backup.sh", K1_PARAM_KEEP="3")

    assert backups(data)[:3] == [
        "before-the-upgrade.sqlite3.gz",
        "k1node-20260104T020000Z.sqlite3.gz",
        "k1node-20260105T020000Z.sqlite3.gz",
    ]
    assert len(backups(data)) == 4
    assert "Deleted k1node-20260101T020000Z.sqlite3.gz" in run.out
    assert "3 of at most 3 backups kept" in run.out


def test_a_database_that_is_not_the_nodes_own_is_not_backed_up(
    agent: Callable[..., Run], data: Path, database: sqlite3.Connection
) -> None:
    run = agent("backup.sh", K1_TASK_ID="a task of a node on PostgreSQL beside an old file")

    assert run.code == 78
    assert "is not the database this node works with" in run.err
    assert "pg_dump" in run.err
    assert backups(data) == []


def test_without_a_database_file_the_advice_is_pg_dump(agent: Callable[..., Run], data: Path) -> None:
    run = agent("backup.sh", K1_TASK_ID=TASK)

    assert run.code == 78
    assert "there is no SQLite database" in run.err
    assert "pg_dump" in run.err


def test_two_backups_at_once_are_one(agent: Callable[..., Run], data: Path, database: sqlite3.Connection) -> None:
    (data / "backups").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; fcntl.flock(3, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.dup2(os.open(data / "backups" / ".lock", os.O_RDWR | os.O_CREAT), 3) and None,
        pass_fds=(3,),
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        run = agent("backup.sh")

        holder.kill()
    assert (run.code, run.err) == (75, "backup: another backup is being made.\n")


def test_a_disk_that_takes_no_more_leaves_earlier_backups_and_no_half_ones(
    data: Path, database: sqlite3.Connection
) -> None:
    folder = data / "backups"
    folder.mkdir()
    (folder / "k1node-20260101T020000Z.sqlite3.gz").write_text("old")
    database.execute("CREATE TABLE filler AS SELECT randomblob(200000) AS bytes")

    done = subprocess.run(
        ["bash", str(AGENTS / "backup.sh")],
        env={"PATH": os.environ["PATH"], "K1_PYTHON": sys.executable, "K1NODE_DATA": str(data), "K1_PARAM_KEEP": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "No backup was written; earlier ones are kept." in done.stderr
    assert "bytes are free" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "k1node-20260101T020000Z.sqlite3.gz"]


@pytest.mark.parametrize("value", [*HOSTILE[:5], "0", "-1", "7.5", "٧"])
def test_a_strange_number_of_backups_is_refused(
    agent: Callable[..., Run], data: Path, database: sqlite3.Connection, value: str
) -> None:
    run = agent("backup.sh", K1_PARAM_KEEP=value)

    assert run.code == 64
    assert run.err.startswith("backup: keep must be a whole number from 1 to 9999, not ")
    assert not (data / "backups").exists()


def test_a_backup_runs_as_a_handler_of_this_node(data: Path, settings: Settings) -> None:
    settings.K1NODE_DATA = data
    with closing(sqlite3.connect(data / "k1node.sqlite3")) as connection:
        connection.execute("CREATE TABLE scheduling_task AS SELECT 'backup-1' AS task_id, 'executing' AS status")
        connection.commit()

    outcome = execution.run(
        "bash ops/agents/backup.sh",
        task_id="backup-1",
        attempt=1,
        parameters={"keep": 2},
        timeout=timedelta(seconds=60),
        grace=timedelta(seconds=1),
        control=Control(),
    )

    assert (outcome.kind, outcome.exit_code, outcome.error) == (OutcomeKind.COMPLETED, 0, "")
    assert len(backups(data)) == 1


# --- export -----------------------------------------------------------------------------------------------------


class Api(ThreadingHTTPServer):
    """A stand-in for the node's web process: pages of tasks, and what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.tasks: list[dict[str, Any]] = []
        self.asked: list[dict[str, str]] = []
        self.tokens: list[str | None] = []
        self.refusals: list[tuple[int, bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/api/v2"


class _Answer(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        api, parts = self.server, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        api.asked.append({"path": parts.path, **query})
        api.tokens.append(self.headers["Authorization"])
        if api.refusals:
            self._send(*api.refusals.pop(0))
        elif parts.path == "/readyz":
            self._send(200, b"{}")
        else:
            start, limit = int(query.get("cursor", 0)), int(query["limit"])
            more = start + limit < len(api.tasks)
            pagination = {"limit": limit, "next_cursor": str(start + limit) if more else None}
            self._send(200, json.dumps({"tasks": api.tasks[start : start + limit], "pagination": pagination}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def export(agent: Callable[..., Run], api: Api) -> Callable[..., Run]:
    def run(**parameters: str) -> Run:
        variables = {f"K1_PARAM_{name.upper()}": value for name, value in parameters.items()}
        return agent("export.sh", K1_API_URL=api.url, K1_API_TOKEN=TOKEN, **variables)

    return run


def task(number: int, **fields: Any) -> dict[str, Any]:
    created = datetime.now(UTC) - timedelta(minutes=number)
    return {"task_id": f"task-{number}", "status": "completed", "created_at": created.isoformat(), **fields}


def exported(data: Path) -> Path:
    (path,) = (data / "exports").iterdir()
    return path


def test_an_export_follows_the_cursor_to_the_last_page(export: Callable[..., Run], api: Api, data: Path) -> None:
    api.tasks = [task(number) for number in range(230)]

    run = export(format="json")

    assert (run.code, run.err) == (0, "")
    rows = json.loads(exported(data).read_text())
    assert [row["task_id"] for row in rows] == [f"task-{number}" for number in range(230)]
    assert [asked.get("cursor") for asked in api.asked] == [None, "100", "200"]
    assert set(api.tokens) == {f"Bearer {TOKEN}"}
    assert f"Wrote {exported(data)}\n230 tasks of " in run.out


def test_an_export_as_csv_opens_safely_in_a_spreadsheet(export: Callable[..., Run], api: Api, data: Path) -> None:
    api.tasks = [
        task(
            1, task_name='=HYPERLINK("http://evil")', last_error='a "quoted", and\nbroken line', result={"exit_code": 1}
        )
    ]

    run = export(dataset="audit.2026")

    assert run.code == 0
    assert exported(data).name.startswith("audit.2026-")
    assert exported(data).suffix == ".csv"
    with exported(data).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["task_id"], row["exit_code"]) == ("task-1", "1")
    assert row["task_name"] == '\'=HYPERLINK("http://evil")'
    assert row["last_error"] == 'a "quoted", and\nbroken line'


def test_an_export_has_the_tasks_of_its_period_only(export: Callable[..., Run], api: Api, data: Path) -> None:
    api.tasks = [task(number) for number in (1, 20, 40, 90)]

    run = export(format="json", since="1h", until="10m", status="completed")

    assert run.code == 0
    assert [row["task_id"] for row in json.loads(exported(data).read_text())] == ["task-20", "task-40"]
    (asked,) = api.asked
    assert asked["status"] == "completed"
    since = datetime.fromisoformat(asked["since"])
    assert timedelta(minutes=59) < datetime.now(UTC) - since < timedelta(minutes=62)


def test_an_export_of_nothing_is_a_file_with_a_header(export: Callable[..., Run], data: Path) -> None:
    run = export()

    assert run.code == 0
    assert exported(data).read_text().startswith("task_id,")
    assert "0 tasks of " in run.out


def test_old_exports_of_the_same_name_make_room(export: Callable[..., Run], data: Path) -> None:
    folder = data / "exports"
    folder.mkdir()
    for name in ("tasks-20260101T000000Z.csv", "tasks-20260102T000000Z.csv", "other-20260101T000000Z.csv"):
        (folder / name).touch()

    assert export(keep="2").code == 0

    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["other-20260101T000000Z.csv", "tasks-20260102T000000Z.csv"]
    assert len(names) == 3


def test_an_export_waits_when_the_node_asks_it_to(export: Callable[..., Run], api: Api) -> None:
    api.tasks, api.refusals = [task(1)], [(429, b"{}"), (429, b"{}")]

    run = export()

    assert run.code == 0
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        pytest.param(401, 1, "refused this task's token (401): no", id="token"),
        pytest.param(400, 64, "the API answered 400: no", id="bad request"),
        pytest.param(503, 1, "the API answered 503: no", id="down"),
    ],
)
def test_an_export_that_is_refused_says_why(
    export: Callable[..., Run], api: Api, data: Path, status: int, code: int, words: str
) -> None:
    api.refusals = [(status, b'{"error": {"code": "X", "message": "no"}}')]

    run = export()

    assert run.code == code
    assert words in run.err
    assert list((data / "exports").iterdir()) == []


def test_an_export_of_strange_answers_is_no_file(export: Callable[..., Run], api: Api, data: Path) -> None:
    api.refusals = [(200, b'{"tasks": "none"}')]

    run = export()

    assert run.code == 1
    assert "unexpected form" in run.err
    assert list((data / "exports").iterdir()) == []


def test_an_export_without_a_node_says_so(agent: Callable[..., Run]) -> None:
    run = agent("export.sh", K1_API_URL="http://127.0.0.1:1/api/v2", K1_API_TOKEN=TOKEN)

    assert run.code == 1
    assert "the API at http://127.0.0.1:1/api/v2/tasks does not answer" in run.err
    assert TOKEN not in run.err
    assert agent("export.sh").code == 78


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *zip(["format", "status", "since", "until", "keep"], HOSTILE, strict=False),
        *[("dataset", value) for value in ("$(touch PWNED)", "../../outside", "-rf", ".hidden", "a/b")],
    ],
)
def test_a_strange_parameter_of_an_export_is_refused(
    export: Callable[..., Run], api: Api, data: Path, name: str, value: str
) -> None:
    run = export(**{name: value})

    assert run.code == 64
    assert run.err.startswith(f"export: {name} ")
    assert not (data / "exports").exists()
    assert api.asked == []


def test_an_export_of_a_period_that_ends_before_it_begins_is_refused(export: Callable[..., Run]) -> None:
    run = export(since="1h", until="2h")

    assert run.code == 64
    assert "lies after until" in run.err


# --- healthcheck ------------------------------------------------------------------------------------------------


def test_a_healthy_node_is_told_so(agent: Callable[..., Run], api: Api) -> None:
    run = agent("healthcheck.sh", K1_API_URL=api.url)

    assert (run.code, run.err) == (0, "")
    assert api.asked == [{"path": "/readyz"}]
    assert "disk: ok" in run.out
    assert f"url: ok, http://127.0.0.1:{api.server_port}/readyz answered 200" in run.out


def test_a_node_that_is_not_ready_fails_with_what_is_wrong(agent: Callable[..., Run], api: Api) -> None:
    api.refusals = [(503, b'{"status": "not ready", "checks": {"database": true, "workers": false}}')]

    run = agent("healthcheck.sh", K1_API_URL=api.url)

    assert run.code == 1
    assert "this node is not ready (503): workers does not answer" in run.err


def test_a_full_disk_and_a_dead_url_are_both_reported(agent: Callable[..., Run]) -> None:
    run = agent("healthcheck.sh", K1_PARAM_MIN_FREE_PERCENT="100", K1_PARAM_URL="http://127.0.0.1:1/")

    assert run.code == 1
    disk, url = run.err.splitlines()
    assert "less than 100 %. Delete old backups" in disk
    assert url.startswith("url: http://127.0.0.1:1/ does not answer: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("min_free_percent", value) for value in ("a[$(touch PWNED)0]", "nan", "101")],
        *[("timeout_seconds", value) for value in ("0", "1e9")],
        *[("url", value) for value in ("file:///etc/passwd", "http://", "http://a:b@c/", "http://x/\ny", "-o/tmp/x")],
    ],
)
def test_a_strange_parameter_of_a_healthcheck_is_refused(agent: Callable[..., Run], name: str, value: str) -> None:
    run = agent("healthcheck.sh", K1_API_URL="http://127.0.0.1:1/api/v2", **{f"K1_PARAM_{name.upper()}": value})

    assert run.code == 64
    assert run.err.startswith(f"healthcheck: {name} must ")


# --- the small ones ---------------------------------------------------------------------------------------------


def test_greet_shows_the_event_and_its_parameters_as_they_are(agent: Callable[..., Run]) -> None:
    body = json.dumps({"event": {"name": "demo.$(touch PWNED)", "metadata": {"x": "`touch PWNED` %s\\n"}}})

    run = agent("greet.sh", stdin=body, K1_EVENT_NAME="demo.$(touch PWNED)%s", K1_TASK_ID="greet-1", K1_ATTEMPT="1")

    assert (run.code, run.err) == (0, "")
    assert run.out == f"Hello from task greet-1, attempt 1.\nEvent: demo.$(touch PWNED)%s\nParameters: {body}\n"


def test_the_failing_sample_fails(agent: Callable[..., Run]) -> None:
    run = agent("fail.sh", K1_ATTEMPT="3")

    assert run.code == 1
    assert "attempt 3" in run.out
    assert "is not a number" in run.err
