import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from django.contrib.auth import authenticate, get_user_model
from pytest_django import Settings

from k1node.node import probe, start
from tests.databases import Rival, only_postgresql
from tests.node.running import PROJECT, until


@pytest.mark.django_db
def test_the_first_operator_can_sign_in_with_the_password_given() -> None:
    password = start.create_first_operator()

    assert password is not None and len(password) >= 16
    user = authenticate(username="operator", password=password)
    assert user is not None
    assert (user.is_superuser, user.is_staff) == (True, True)


@pytest.mark.django_db
def test_no_operator_is_made_where_a_superuser_exists() -> None:
    get_user_model()._default_manager.create_superuser("ana", password="x")

    assert start.create_first_operator() is None
    assert get_user_model()._default_manager.count() == 1


@pytest.mark.django_db
def test_an_ordinary_user_called_operator_is_not_promoted() -> None:
    get_user_model()._default_manager.create_user("operator", password="x")
    said: list[str] = []

    password = start.create_first_operator(said.append)

    assert password is None
    assert "createsuperuser" in said[0]


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator[Path]:
    descriptor = start.lock_data_folder(tmp_path)
    yield tmp_path
    os.close(descriptor)


def test_a_second_node_on_the_same_folder_is_refused_and_told_whose_it_is(claimed: Path) -> None:
    with pytest.raises(start.AlreadyRunning, match=f"process {os.getpid()}"):
        start.lock_data_folder(claimed)


def test_the_claim_ends_with_its_holder(tmp_path: Path) -> None:
    os.close(start.lock_data_folder(tmp_path))

    os.close(start.lock_data_folder(tmp_path))


def _succeed() -> None:
    pass


def _fail() -> None:
    sys.exit(3)


def _raise() -> None:
    raise ValueError


def test_work_in_a_child_answers_with_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert [start.in_child(_succeed), start.in_child(_fail), start.in_child(_raise)] == [0, 3, 1]
    assert "ValueError" in capfd.readouterr().err


def test_a_new_database_is_for_its_owner_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    environment = {**os.environ, "K1NODE_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "k1node.settings"}
    prepare = "from k1node.node import start; import django; django.setup(); start.prepare_database(print)"

    subprocess.run([sys.executable, "-c", prepare], cwd=PROJECT, env=environment | {"DB_HOST": ""}, check=True)

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("k1node.sqlite3*")}
    assert modes and set(modes.values()) == {0o600}


UNENDING = """
import os, time
from pathlib import Path
from k1node.node import start

def work():
    Path("child").write_text(str(os.getpid()))
    time.sleep(60)

raise SystemExit(start.in_child(work))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_work_in_a_child_does_not_outlive_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", UNENDING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "DJANGO_SETTINGS_MODULE": "k1node.settings"},
    )
    try:
        until(lambda: (tmp_path / "child").read_text(), what="the child's start")
        child = psutil.Process(int((tmp_path / "child").read_text()))

        parent.send_signal(number)
        code = parent.wait(10)

        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, within=5, what="its end")
        assert code == (143 if number == signal.SIGTERM else -9)
    finally:
        parent.kill()


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_second_migrator_waits_for_the_first(monkeypatch: pytest.MonkeyPatch, rival: Rival) -> None:
    said: list[str] = []
    rival.execute("SELECT pg_advisory_lock(%s)", [start.MIGRATION_LOCK])

    def first_ends(_seconds: float) -> None:
        rival.execute("SELECT pg_advisory_unlock(%s)", [start.MIGRATION_LOCK])

    monkeypatch.setattr(time, "sleep", first_ends)

    with start.migration_lock(said.append):
        taken = rival.execute("SELECT pg_try_advisory_lock(%s)", [start.MIGRATION_LOCK])

    assert said == ["Another node is migrating the database; waiting for it."]
    assert taken == [(False,)]


@pytest.mark.parametrize(
    ("bind", "https", "hosts", "url"),
    [
        ("127.0.0.1", False, ["localhost"], "http://localhost:3000/admin/"),
        ("0.0.0.0", False, ["*"], "http://localhost:3000/admin/"),
        ("::1", False, ["[::1]"], "http://[::1]:3000/admin/"),
        ("0.0.0.0", True, ["k1.example"], "https://k1.example/admin/"),
        ("0.0.0.0", True, [".example"], "http://localhost:3000/admin/"),
    ],
)
def test_the_console_is_named_as_an_operator_reaches_it(
    settings: Settings, bind: str, https: bool, hosts: list[str], url: str
) -> None:
    settings.K1NODE_BIND, settings.HTTPS, settings.ALLOWED_HOSTS, settings.PORT = bind, https, hosts, 3000

    assert start.console_url() == url


def test_the_banner_names_folder_and_limits_and_no_secret(settings: Settings) -> None:
    settings.K1NODE_MAX_CPU_PERCENT = 100

    text = start.banner()

    assert str(settings.K1NODE_DATA) in text
    assert "4 tasks at once in 4 workers, CPU without limit, memory up to 85 %" in text
    assert settings.SECRET_KEY not in text


@pytest.mark.parametrize(
    ("bind", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.1", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")]
)
def test_the_web_is_asked_where_it_listens(bind: str, asked: str) -> None:
    assert probe.address_to_ask(bind) == asked


def test_silence_and_a_closed_port_are_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe.answers("127.0.0.1", port, timeout=0.05) is False
    assert probe.answers("127.0.0.1", port, timeout=0.05) is False


def test_three_silences_in_a_row_mean_hung_but_not_while_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, False, True, False, False, False])
    monkeypatch.setattr(probe, "answers", lambda host, port: next(answers))
    web = probe.WebProbe("127.0.0.1", 1)
    web.watch(100.0)
    found: list[tuple[bool, bool]] = []

    for _ in range(7):
        web.ask()
        found.append((web.is_hung(129.0), web.is_hung(131.0)))

    starting = [(False, False), (False, False), (False, True)]
    answered = [(False, False), (False, False), (False, False), (True, True)]
    assert found == starting + answered


def test_nothing_is_asked_while_there_is_no_web(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "answers", lambda host, port: pytest.fail("asked"))

    probe.WebProbe("127.0.0.1", 1).ask()
