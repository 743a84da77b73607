"""What the audit log keeps: every act of consequence once, who and from where, and no secret."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import transaction
from django.test import Client
from rest_framework.test import APIClient

from k1node.access import keys
from k1node.audit import trail
from k1node.audit.models import AuditRecord, AuditRefusal
from k1node.audit.redaction import HIDDEN, MOST_BYTES, redacted
from k1node.lib import origin
from k1node.lib.clock_time import database_now
from scheduling.models import TaskStatus
from tests.factories import make_dead_letter, make_schedule, make_task

pytestmark = pytest.mark.django_db
Maker = Callable[..., Any]
SCHEDULES = "/api/v2/scheduler/schedules"
AUDIT = "/api/v2/audit"


def actions() -> list[str]:
    return list(AuditRecord.objects.order_by("id").values_list("action", flat=True))


def folded() -> list[tuple[str, int]]:
    return list(AuditRefusal.objects.order_by("id").values_list("action", "count"))


# --- who, from where ------------------------------------------------------------------------------------------------
def test_an_act_over_the_api_says_who_from_where_and_under_which_request(api_client: Maker) -> None:
    client = api_client("scheduler:write")
    body = {"task_id": "s", "handler": "python:noop", "schedule_type": "cron", "schedule_expr": "0 2 * * *"}

    response = client.post(SCHEDULES, body, format="json", REMOTE_ADDR="192.0.2.7", headers={"X-Request-Id": "req-1"})

    assert response.status_code == 201
    row = AuditRecord.objects.get(action="schedule.created")
    assert (row.target, row.actor_name, row.address, row.request_id) == ("schedule:s", "test", "192.0.2.7", "req-1")
    assert row.actor.startswith("key:")
    assert row.before is None and row.after is not None and row.after["handler"] == "python:noop"


def test_a_change_keeps_what_was_before_and_what_is_after(api_client: Maker, handler_root: Any) -> None:
    make_schedule(task_id="s", priority=5, handler="bash x.sh", parameters={"password": "hunter2"})
    change = {"priority": 7, "handler": "bash x.sh", "parameters": {"password": "hunter3"}}
    handler_root.write("x.sh", "true")

    response = api_client("scheduler:write").patch(f"{SCHEDULES}/s", change, format="json")

    assert response.status_code == 200, response.content

    row = AuditRecord.objects.get(action="schedule.updated")
    assert row.before is not None and row.after is not None
    assert (row.before["priority"], row.after["priority"]) == (5, 7)
    assert row.before["parameters"] != row.after["parameters"]
    assert "hunter" not in str(row.before) + str(row.after)


def test_a_request_that_changes_nothing_is_no_act(api_client: Maker) -> None:
    make_schedule(task_id="s", priority=5)

    api_client("scheduler:write").patch(f"{SCHEDULES}/s", {"priority": 5}, format="json")

    assert "schedule.updated" not in actions()


def test_an_act_that_is_rolled_back_leaves_no_record(now: datetime) -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        trail.record("key.issued", "key:1", now=now)
        raise RuntimeError

    assert actions() == []


def test_outside_of_a_request_the_node_itself_acts(now: datetime) -> None:
    trail.record("key.issued", "key:1", by="createapikey", now=now)

    row = AuditRecord.objects.get()
    assert (row.actor, row.actor_name, row.address) == ("system", "createapikey", "")


@pytest.mark.parametrize(
    ("method", "path", "body", "action", "target"),
    [
        ("post", f"{SCHEDULES}/s/run", {}, "schedule.run", "schedule:s"),
        ("delete", f"{SCHEDULES}/s", None, "schedule.deleted", "schedule:s"),
        ("post", "/api/v2/tasks/t/pause", {"reason": "why"}, "task.pause", "task:t"),
        ("post", "/api/v2/tasks/t/cancel", {}, "task.cancel", "task:t"),
        ("post", "/api/v2/scheduler/hold", {"reason": "r"}, "hold.hold", ""),
        ("post", "/api/v2/circuit-breaker", {"breaker_id": "b"}, "breaker.configure", "breaker:b"),
        ("post", "/api/v2/retry-policies", {"name": "p"}, "policy.configure", "policy:p"),
        ("post", "/api/v2/queue/dlq/dlq-f/resubmit", {}, "task.resubmit", "task:f"),
        ("post", "/api/v2/queue/dlq/dlq-f/archive", {}, "task.archive", "task:f"),
    ],
)
def test_acts_of_consequence_leave_one_record(
    api_client: Maker, method: str, path: str, body: Any, action: str, target: str
) -> None:
    make_schedule(task_id="s")
    make_task(task_id="t")
    make_dead_letter(make_task(task_id="f", status=TaskStatus.FAILED), dlq_id="dlq-f")

    response = getattr(api_client("admin"), method)(path, body, format="json")

    assert response.status_code < 300, response.content
    done = [(row.action, row.target) for row in AuditRecord.objects.exclude(action__startswith="key.")]
    assert done == [(action, target)]


def test_many_at_once_leave_one_record_with_their_number(api_client: Maker) -> None:
    letters = [
        make_dead_letter(make_task(task_id=f"f-{index}", status=TaskStatus.FAILED), dlq_id=f"dlq-{index}")
        for index in range(3)
    ]

    response = api_client("error-recovery:write").post(
        "/api/v2/queue/dlq/batch-resubmit", {"dlq_ids": [letter.dlq_id for letter in letters]}, format="json"
    )

    assert response.status_code == 202
    row = AuditRecord.objects.get(action="task.resubmit")
    assert row.count == 3 and row.after is not None and len(row.after["task_pks"]) == 3


# --- refusals -------------------------------------------------------------------------------------------------------
def test_refusals_of_one_source_and_minute_are_one_row_and_then_one_record() -> None:
    client = APIClient(REMOTE_ADDR="192.0.2.7")
    for _ in range(5):
        client.get(SCHEDULES, headers={"Authorization": "Bearer sk-k1n_wrong"})

    counts = folded()
    assert sum(count for _, count in counts) == 5 and {action for action, _ in counts} == {"key.refused"}
    assert actions() == []

    trail.fold(now=database_now() + timedelta(minutes=1))

    assert folded() == []
    row = AuditRecord.objects.order_by("id")[0]
    assert (row.action, row.address, row.reason) == ("key.refused", "192.0.2.7", "malformed key")
    assert sum(AuditRecord.objects.values_list("count", flat=True)) == 5


def test_the_running_minute_is_not_folded_yet() -> None:
    with origin.of(origin.Origin("192.0.2.7", "req-1")):
        trail.refused("key.refused", "unknown key")

    assert trail.fold(now=AuditRefusal.objects.get().minute + timedelta(seconds=59)) == 0


@pytest.mark.parametrize(
    ("token", "action"),
    [
        ("sk-k1n_wrong", "key.refused"),
        ("kt-wrong", "task.refused"),
        ("eyJhbGciOiJub25lIn0.e30.", "jwt.refused"),
        ("somethingelse", "token.refused"),
    ],
)
def test_every_kind_of_credential_that_fails_is_told_apart(token: str, action: str) -> None:
    APIClient().get(SCHEDULES, headers={"Authorization": f"Bearer {token}"})

    assert folded() == [(action, 1)]


def test_who_may_not_is_named(api_client: Maker) -> None:
    api_client("batch:write").get(SCHEDULES)

    row = AuditRefusal.objects.get()
    assert (row.action, row.actor_name, row.target) == ("access.denied", "test", f"GET {SCHEDULES}")


def test_a_session_without_its_csrf_token_is_refused_and_written_down(operator: Maker) -> None:
    client = Client(enforce_csrf_checks=True)
    client.cookies = operator("view_task", "change_task").cookies

    response = client.post("/api/v2/tasks/t/pause", {}, content_type="application/json")

    assert response.status_code == 403
    assert folded() == [("session.refused", 1)]


# --- the console ----------------------------------------------------------------------------------------------------
def test_signing_in_and_out_are_acts_and_a_wrong_password_is_a_refusal(db: None) -> None:
    User.objects.create_superuser("root", password="right password 1")
    client = Client(REMOTE_ADDR="192.0.2.7")

    client.post("/admin/login/", {"username": "root", "password": "wrong"})
    client.post("/admin/login/", {"username": "root", "password": "right password 1"})
    client.post("/admin/logout/")

    assert folded() == [("signin.refused", 1)]
    assert AuditRefusal.objects.get().actor_name == "root"
    rows = AuditRecord.objects.order_by("id").values_list("action", "target", "actor_name", "address")
    assert list(rows) == [
        ("signin.succeeded", "user:root", "root", "192.0.2.7"),
        ("signout.succeeded", "user:root", "root", "192.0.2.7"),
    ]


def test_a_new_password_is_an_act_and_a_failed_try_is_not(admin_client: Client) -> None:
    given = {"old_password": "password", "new_password1": "correct horse 7", "new_password2": "other"}
    admin_client.post("/admin/password_change/", given)
    assert actions() == []

    admin_client.post("/admin/password_change/", {**given, "new_password2": "correct horse 7"})

    assert actions() == ["password.changed"]


def test_rights_given_on_the_console_are_written_down_without_passwords(admin_client: Client) -> None:
    user = User.objects.create_user("ana", password="secret words 9")
    page = f"/admin/auth/user/{user.pk}/change/"

    admin_client.post(
        page, {"username": "ana", "is_staff": "on", "date_joined_0": "2026-01-01", "date_joined_1": "0:0"}
    )

    row = AuditRecord.objects.get(action="user.updated")
    assert row.after is not None
    assert (row.target, row.after["is_staff"], row.actor_name) == ("user:ana", True, "admin")
    assert "secret" not in str(row.after)


def test_a_password_that_an_administrator_sets_is_written_down_as_that(admin_client: Client) -> None:
    user = User.objects.create_user("ana", password="secret words 9")
    given = {"password1": "correct horse 7", "password2": "correct horse 7"}

    admin_client.post(f"/admin/auth/user/{user.pk}/password/", given)

    row = AuditRecord.objects.get(action="user.updated")
    assert (row.target, row.after) == ("user:ana", {"password": HIDDEN})


def test_a_deleted_user_is_written_down(admin_client: Client) -> None:
    user = User.objects.create_user("ana")

    admin_client.post(f"/admin/auth/user/{user.pk}/delete/", {"post": "yes"})

    assert AuditRecord.objects.get(action="user.deleted").target == "user:ana"


# --- reading --------------------------------------------------------------------------------------------------------
def test_only_admin_reads_it(api_client: Maker) -> None:
    assert api_client("dashboard:write").get(AUDIT).status_code == 403
    assert api_client("admin").get(AUDIT).status_code == 200


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["c", "b", "a"]),
        ("?action=key.issued", ["b", "a"]),
        ("?action=schedule.*", ["c"]),
        ("?target=b", ["b"]),
        ("?actor=system", ["c", "b", "a"]),
        ("?actor=user:1", []),
        ("?since=2026-03-04T05:06:08.890Z", ["c", "b"]),
        ("?until=2026-03-04T05:06:08.890Z", ["a"]),
        ("?limit=1", ["c"]),
    ],
)
def test_filters_narrow_the_list(api_client: Maker, now: datetime, query: str, found: list[str]) -> None:
    client = api_client("admin")
    AuditRefusal.objects.all().delete()
    for second, (action, target) in enumerate([("key.issued", "a"), ("key.issued", "b"), ("schedule.updated", "c")]):
        trail.record(action, target, now=now + timedelta(seconds=second))

    records = client.get(AUDIT + query).json()["records"]

    assert [record["target"] for record in records if not record["target"].startswith("key:")] == found


def test_one_record_is_read_in_full(api_client: Maker, now: datetime) -> None:
    trail.record("key.issued", "key:1", after={"scopes": ["admin"]}, reason="new service", now=now)
    row = AuditRecord.objects.order_by("id").first()
    assert row is not None

    body = api_client("admin").get(f"{AUDIT}/{row.pk}").json()

    assert body == {
        "record_id": str(row.pk),
        "timestamp": "2026-03-04T05:06:07.890+00:00",
        "action": "key.issued",
        "actor": "system",
        "actor_name": "",
        "address": "",
        "request_id": "",
        "target": "key:1",
        "before": None,
        "after": {"scopes": ["admin"]},
        "reason": "new service",
        "count": 1,
        "last_at": None,
    }


@pytest.mark.parametrize("record_id", ["0", "none", "99999999999999999999"])
def test_a_record_that_is_not_there(api_client: Maker, record_id: str) -> None:
    assert api_client("admin").get(f"{AUDIT}/{record_id}").status_code == 404


# --- redaction ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"password": "x"}, {"password": HIDDEN}),
        ({"a": {"client_secret": "x", "b": 1}}, {"a": {"client_secret": HIDDEN, "b": 1}}),
        ({"list": [{"api_key": "x"}]}, {"list": [{"api_key": HIDDEN}]}),
        ({"token": None, "has_password": True}, {"token": None, "has_password": True}),
        ({"text": "with rt-k1n_0123456789abcdef in it"}, {"text": f"with {HIDDEN} in it"}),
        ({"text": "with sk-k1n_0123456789abcdef in it"}, {"text": f"with {HIDDEN} in it"}),
        ({"text": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, {"text": HIDDEN}),
        ({"text": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJrIn0.c2ln"}, {"text": HIDDEN}),
        ({"handler": "bash ops/agents/backup.sh"}, {"handler": "bash ops/agents/backup.sh"}),
    ],
)
def test_secrets_are_hidden_by_name_and_by_shape(given: dict[str, Any], kept: dict[str, Any]) -> None:
    assert redacted(given) == kept


def test_what_is_too_large_is_kept_by_its_names_and_a_hash() -> None:
    kept = redacted({"text": "x" * MOST_BYTES})

    assert kept is not None and kept["names"] == ["text"] and len(kept["sha256"]) == 64


def test_making_a_key_leaves_no_trace_of_it(api_client: Maker) -> None:
    _key, text = keys.issue("billing", ["scheduler:read"])

    assert all(text not in str(row.after) + str(row.target) for row in AuditRecord.objects.all())


def test_one_subscriber_of_ipv6_fills_one_row_with_all_their_addresses() -> None:
    for last in range(3):
        with origin.of(origin.Origin(f"2001:db8::{last + 1}", "req-1")):
            trail.refused("key.refused", "unknown key")

    row = AuditRefusal.objects.get()
    assert (row.address, row.count) == ("2001:db8::/64", 3)


@pytest.mark.parametrize("header", ["Basic YTpi", "sk-k1n_without-a-scheme"])
def test_what_is_no_bearer_token_is_written_down_too(header: str) -> None:
    APIClient().get(SCHEDULES, headers={"Authorization": header})

    assert sum(count for _, count in folded()) == 1


def test_a_session_that_is_over_is_written_down_and_a_request_without_anything_is_not() -> None:
    client = APIClient()
    client.get(SCHEDULES)
    assert folded() == []

    client.cookies["sessionid"] = "over"
    client.get(SCHEDULES)

    assert folded() == [("session.refused", 1)]


def test_what_comes_of_a_request_that_nobody_is_recognised_by_is_not_the_nodes_own_act(db: None) -> None:
    with origin.of(origin.Origin("192.0.2.7", "req-1")):
        trail.record("grant.revoked", "family:1")

    assert AuditRecord.objects.get().actor == "unknown"


def test_a_token_is_revoked_once_however_often_that_is_asked(api_client: Maker) -> None:
    token = api_client("admin").post("/api/v2/auth/token", {}, format="json").json()

    for text in (token["access_token"], token["refresh_token"]):
        for _ in range(2):
            APIClient().post("/api/v2/auth/revoke", {"token": text}, format="json")

    rows = AuditRecord.objects.filter(action="grant.revoked").order_by("id")
    assert len(rows) == 2
    assert rows[1].actor.startswith("key:") and rows[1].actor_name == "test"


def test_rights_that_are_taken_away_are_told_with_what_they_were(admin_client: Client) -> None:
    user = User.objects.create_user("ana", is_staff=True)
    page = f"/admin/auth/user/{user.pk}/change/"

    admin_client.post(page, {"username": "ana", "date_joined_0": "2026-01-01", "date_joined_1": "0:0"})
    admin_client.post(page.replace("change", "delete"), {"post": "yes"})

    changed, deleted = AuditRecord.objects.filter(action__startswith="user.").order_by("id")
    assert changed.before is not None and changed.before["is_staff"] is True
    assert deleted.before is not None and deleted.before["username"] == "ana" and deleted.before["password"] == HIDDEN


def test_users_made_and_passwords_set_by_commands_are_written_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "correct horse 7")
    call_command("createsuperuser", "--noinput", username="root", email="root@example.org")
    monkeypatch.setattr("getpass.getpass", lambda *args, **kwargs: "battery staple 8")
    call_command("changepassword", "root")

    rows = AuditRecord.objects.order_by("id").values_list("action", "target", "actor", "actor_name")
    assert list(rows) == [
        ("user.created", "user:root", "system", "createsuperuser"),
        ("password.changed", "user:root", "system", "changepassword"),
    ]
    assert "correct" not in str(list(AuditRecord.objects.values()))
    assert User.objects.get().check_password("battery staple 8")
