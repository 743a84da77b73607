"""Rules about notices on the console: made, changed and deleted by those who may, refused at the wrong field."""

import smtplib
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.core import mail as post
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from recovery import notice_admin, notices
from recovery.models import NoticeMail, NoticeReader, NoticeRule
from scheduling.models import Schedule
from tests.factories import NOW, make_schedule

pytestmark = pytest.mark.django_db

LIST = reverse("admin:recovery_noticerule_changelist")
ADD = reverse("admin:recovery_noticerule_add")
USUAL = {
    "name": "ops",
    "enabled": "on",
    "addresses": "ana@example.org\n ben@example.org,",
    "kinds": ["failed", "recovered"],
    "schedule": "",
    "window_seconds": "600",
}


@pytest.fixture(autouse=True)
def mail_server(settings: Settings) -> None:
    settings.EMAIL_HOST = "smtp.example.org"


@pytest.fixture
def rule() -> NoticeRule:
    return NoticeRule.objects.create(name="ops", addresses=["ana@example.org"])


def page_of(rule: NoticeRule) -> str:
    return reverse("admin:recovery_noticerule_change", args=(rule.pk,))


def said(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def text_of(response: Any) -> str:
    return str(response.content.decode())


def test_an_operator_makes_a_rule_and_the_log_is_read_from_then_on(operator: Callable[..., Client]) -> None:
    schedule = make_schedule(task_id="backup")

    response = operator("add_noticerule").post(ADD, USUAL | {"schedule": "backup"})

    assert response.status_code == 302
    rule = NoticeRule.objects.get()
    assert (rule.name, rule.enabled, rule.schedule, rule.window_seconds) == ("ops", True, schedule, 600)
    assert rule.addresses == ["ana@example.org", "ben@example.org"]
    assert rule.kinds == ["failed", "recovered"]
    assert NoticeReader.objects.get().cursor_id is not None


def test_a_new_rule_is_about_everything_but_failed_attempts(admin_client: Client) -> None:
    form = admin_client.get(ADD).context["adminform"].form

    assert form["kinds"].value() == ["failed", "dead_letter", "opened", "closed", "recovered"]
    assert form["window_seconds"].value() == 300


@pytest.mark.parametrize(
    ("changed", "field", "message"),
    [
        ({"addresses": "ana@example.org, ben"}, "addresses", "Is not an e-mail address: ben"),
        ({"addresses": " ,\n"}, "addresses", "This field is required."),
        ({"addresses": ""}, "addresses", "This field is required."),
        ({"addresses": "a@b.org A@b.org"}, "addresses", "Names an address twice."),
        ({"kinds": []}, "kinds", "This field is required."),
        ({"kinds": ["x"]}, "kinds", "Select a valid choice. x is not one of the available choices."),
        ({"schedule": "nobody"}, "schedule", "There is no schedule 'nobody'."),
        ({"window_seconds": "9"}, "window_seconds", "Ensure this value is greater than or equal to 10."),
        ({"name": ""}, "name", "This field is required."),
        ({"name": "a\u200bb"}, "name", "Must be printable characters."),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(
    admin_client: Client, changed: dict[str, Any], field: str, message: str
) -> None:
    response = admin_client.post(ADD, USUAL | changed)

    assert response.context["adminform"].form.errors.get_json_data()[field][0]["message"] == message
    assert not NoticeRule.objects.exists()


def test_a_name_is_taken_once(admin_client: Client, rule: NoticeRule) -> None:
    response = admin_client.post(ADD, USUAL)

    assert list(response.context["adminform"].form.errors) == ["name"]


def test_a_change_keeps_what_the_post_has_noted(admin_client: Client, rule: NoticeRule) -> None:
    NoticeRule.objects.update(last_sent_at=NOW, last_error="550 no")

    admin_client.post(page_of(rule), USUAL | {"enabled": ""})

    rule.refresh_from_db()
    assert (rule.enabled, rule.window_seconds, rule.last_sent_at, rule.last_error) == (False, 600, NOW, "550 no")


def test_a_rule_of_a_deleted_schedule_does_not_become_one_about_everything(admin_client: Client) -> None:
    schedule = make_schedule(task_id="backup")
    rule = NoticeRule.objects.create(name="ops", addresses=["ana@example.org"], schedule=schedule)
    Schedule.objects.filter(pk=schedule.pk)._raw_delete("default")
    form = admin_client.get(page_of(rule)).context["adminform"].form

    response = admin_client.post(page_of(rule), USUAL | {"schedule": form["schedule"].value()})

    assert list(response.context["adminform"].form.errors) == ["schedule"]
    assert "a schedule that was deleted" in text_of(admin_client.get(LIST))


def test_a_rule_shows_its_own_schedule(admin_client: Client) -> None:
    rule = NoticeRule.objects.create(name="a", addresses=["a@b.org"], schedule=make_schedule(task_id="backup"))

    assert admin_client.get(page_of(rule)).context["adminform"].form["schedule"].value() == "backup"


def test_a_rule_is_deleted_with_what_waits_and_its_mails_stay(
    operator: Callable[..., Client], rule: NoticeRule
) -> None:
    client = operator("delete_noticerule", "view_noticerule", "change_noticerule")
    for sent_at in (NOW, None):
        times = {"began_at": NOW, "ended_at": NOW, "due_at": NOW, "sealed_at": NOW}
        NoticeMail.objects.create(rule=rule, rule_name="ops", counts={"failed": 1}, sent_at=sent_at, **times)

    client.post(reverse("admin:recovery_noticerule_delete", args=(rule.pk,)), {"post": "yes"})

    assert not NoticeRule.objects.exists()
    assert NoticeMail.objects.get().sent_at == NOW


def test_rules_are_deleted_together(admin_client: Client, rule: NoticeRule) -> None:
    data = {"action": "delete_selected", "_selected_action": rule.pk, "post": "yes"}

    admin_client.post(LIST, data)

    assert not NoticeRule.objects.exists()


@pytest.mark.parametrize("may", ["add", "change", "delete"])
def test_who_may_only_look_changes_nothing(operator: Callable[..., Client], rule: NoticeRule, may: str) -> None:
    client = operator("view_noticerule")
    address = {"add": ADD, "change": page_of(rule), "delete": reverse("admin:recovery_noticerule_delete", args=(1,))}

    assert client.get(page_of(rule)).status_code == 200
    assert client.post(address[may], USUAL | {"post": "yes"}).status_code == 403
    client.post(LIST, {"action": "send_test", "_selected_action": rule.pk})
    assert post.outbox == []


def test_a_test_mail_goes_to_every_address(admin_client: Client, rule: NoticeRule) -> None:
    response = admin_client.post(LIST, {"action": "send_test", "_selected_action": rule.pk})

    assert said(response) == ["ops: the server took a mail to ana@example.org."]
    assert [(message.to, message.subject) for message in post.outbox] == [(["ana@example.org"], "K1.Node: a test")]


def test_a_test_mail_that_does_not_go_says_why(
    admin_client: Client, rule: NoticeRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, _messages: object) -> int:
        raise smtplib.SMTPAuthenticationError(535, b"bad <credentials>")

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", refuse)

    response = admin_client.post(LIST, {"action": "send_test", "_selected_action": rule.pk})

    assert said(response) == ["ops: not sent. 535 bad &lt;credentials&gt;"]


@pytest.mark.parametrize("where", ["list", "page", "add"])
def test_the_console_says_that_there_is_no_server(
    admin_client: Client, rule: NoticeRule, settings: Settings, where: str
) -> None:
    address = {"list": LIST, "page": page_of(rule), "add": ADD}[where]
    with_one = text_of(admin_client.get(address))
    settings.EMAIL_HOST = ""

    without = text_of(admin_client.get(address))

    assert notice_admin.NO_SERVER not in with_one
    assert without.count(notice_admin.NO_SERVER) == 1


def test_a_test_mail_without_a_server_is_not_tried(admin_client: Client, rule: NoticeRule, settings: Settings) -> None:
    settings.EMAIL_HOST = ""

    response = admin_client.post(LIST, {"action": "send_test", "_selected_action": rule.pk})

    assert said(response) == ["ops: not sent. EMAIL_HOST is not set"]


def test_the_list_shows_how_mails_fare(admin_client: Client, rule: NoticeRule) -> None:
    quiet = text_of(admin_client.get(LIST))
    mail = NoticeMail.objects.create(
        rule=rule, rule_name="ops", counts={"failed": 1200, "opened": 34}, began_at=NOW, ended_at=NOW, due_at=NOW
    )
    collecting = text_of(admin_client.get(LIST))
    NoticeRule.objects.update(last_error="550 no such user")
    failing = text_of(admin_client.get(LIST))

    assert "none yet" in quiet
    assert "1,234 for the next mail" in collecting
    assert "550 no such user" in failing
    page = text_of(admin_client.get(reverse("admin:recovery_noticemail_change", args=(mail.pk,))))
    assert "1,200  task failed for good" in page


def test_the_list_asks_as_often_for_many_rules_as_for_one(
    admin_client: Client, rule: NoticeRule, django_assert_max_num_queries: Any
) -> None:
    for number in range(10):
        notices.keep(
            NoticeRule(name=f"r{number}", addresses=["a@b.org"], schedule=make_schedule()),
            now=NOW,
        )

    with django_assert_max_num_queries(7):
        admin_client.get(LIST)
