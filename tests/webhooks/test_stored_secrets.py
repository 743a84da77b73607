"""Stored secrets under more than one key: encrypting them anew, and a start that is refused where they are lost."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import DjangoAssertNumQueries, Settings

from k1node.audit.models import AuditRecord
from k1node.lib import keyring
from k1node.node import start
from tests.factories import NOW, SECRET, make_webhook
from webhooks import endpoints, signing, signing_secrets, stored_secrets
from webhooks.models import Webhook

pytestmark = pytest.mark.django_db

NEW, OLD = keyring.new_key(), keyring.new_key()
NEXT = "whsec_HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA="


@pytest.fixture
def under(settings: Settings) -> Callable[..., None]:
    """Return a function that sets the keyring."""

    def set_keys(*keys: str) -> None:
        settings.K1NODE_KEYRING = list(keys)

    set_keys(OLD)
    return set_keys


def rotate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit code of the command and what it wrote."""
    code = 0
    try:
        call_command("rotate_secrets", *arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def read(webhook: Webhook) -> tuple[str, str, dict[str, str]]:
    webhook.refresh_from_db()
    texts = [signing_secrets.unsealed(webhook, name) for name in ("secret", "next_secret")]
    return texts[0], texts[1], signing_secrets.headers(webhook)


def test_everything_is_readable_under_the_new_key_alone(
    under: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_webhook(next_secret=NEXT, headers={"X-Tenant": "blue"})
    under(NEW, OLD)
    second = make_webhook()

    code, out, told = rotate(capsys)

    under(NEW)
    assert (code, out) == (0, "")
    assert "3 secrets encrypted anew, 1 were under the first key already." in told
    assert read(first) == (SECRET, NEXT, {"X-Tenant": "blue"})
    assert read(second) == (SECRET, "", {})


def test_a_second_run_has_nothing_to_do(under: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    webhook = make_webhook()
    under(NEW, OLD)
    rotate(capsys)
    webhook.refresh_from_db()
    stored = webhook.secret

    _, _, told = rotate(capsys)

    webhook.refresh_from_db()
    assert "0 secrets encrypted anew, 1 were under" in told
    assert webhook.secret == stored


def test_a_run_that_was_cut_short_goes_on(
    under: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = [make_webhook() for _ in range(3)]
    under(NEW, OLD)
    unsealed, calls = signing_secrets.unsealed, 0

    def cut(webhook: Webhook, name: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return unsealed(webhook, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(signing_secrets, "unsealed", cut)
        stored_secrets.seal_anew()
    _, _, told = rotate(capsys)

    under(NEW)
    assert "1 secrets encrypted anew, 2 were under" in told
    assert [read(webhook)[0] for webhook in webhooks] == [SECRET] * 3


def test_a_secret_that_changes_meanwhile_is_not_overwritten(
    under: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = make_webhook()
    under(NEW, OLD)
    sealed, changed = signing_secrets.sealed, False

    def changing(webhook_id: str, name: str, text: str) -> str:
        nonlocal changed
        if not changed:
            changed = True
            under(OLD, NEW)  # a node that does not know the new order yet
            Webhook.objects.update(secret=sealed(webhook_id, name, NEXT))
            under(NEW, OLD)
        return sealed(webhook_id, name, text)

    monkeypatch.setattr(signing_secrets, "sealed", changing)
    report = stored_secrets.seal_anew()

    under(NEW)
    assert (report.encrypted, report.unreadable) == (1, {})
    assert read(webhook)[0] == NEXT


def test_what_cannot_be_read_is_named_and_left(under: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    lost = make_webhook(name="billing", next_secret=NEXT)
    before = lost.secret
    under(NEW)
    make_webhook()

    code, out, told = rotate(capsys)

    lost.refresh_from_db()
    assert (code, out, lost.secret) == (1, "", before)
    assert f"Cannot be read: secret and next secret of billing ({lost.webhook_id})" in told


def test_what_is_lost_is_renewed_when_asked(under: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    lost = make_webhook(name="billing", next_secret=NEXT, rotates_at=NOW, headers={"X-Tenant": "blue"})
    under(NEW)
    kept = make_webhook()

    code, out, told = rotate(capsys, "--renew-unreadable")

    webhook_id, secret = out.split()
    assert (code, webhook_id) == (0, lost.webhook_id)
    assert signing.is_secret(secret)
    assert read(lost) == (secret, "", {})
    assert lost.header_names == []
    assert "has lost its headers: X-Tenant" in told
    assert read(kept)[0] == SECRET
    assert set(AuditRecord.objects.values_list("action", flat=True)) == {"webhook.updated", "webhook.rotated"}
    assert not any(secret in str(row) for row in AuditRecord.objects.values_list("before", "after"))


def test_a_secret_moved_to_another_row_cannot_be_read_and_is_not_encrypted_anew(
    under: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    victim, attacker = make_webhook(name="victim"), make_webhook(name="attacker")
    Webhook.objects.filter(pk=attacker.pk).update(secret=victim.secret)
    under(NEW, OLD)

    code, _, told = rotate(capsys)

    assert code == 1
    assert "Cannot be read: secret of attacker" in told
    assert "1 secrets encrypted anew" in told


def test_deleted_webhooks_have_no_secrets_to_read(
    under: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    webhook = make_webhook(headers={"X-Tenant": "blue"})
    endpoints.delete(webhook, by="ana", now=NOW)
    under(NEW)

    assert rotate(capsys)[0] == 0
    assert stored_secrets.why_not_start() == ""


# --- the start --------------------------------------------------------------------------------------------------


def nothing(*_: Any, **__: Any) -> None: ...


def test_a_node_that_cannot_read_a_secret_does_not_start(
    under: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "call_command", nothing)
    make_webhook(name="billing", webhook_id="wh-1")
    make_webhook(name="crm", webhook_id="wh-2", headers={"X-Tenant": "blue"})
    under(NEW)
    make_webhook(name="new", webhook_id="wh-3")

    with pytest.raises(CommandError) as refused:
        start.prepare_database(nothing)

    assert str(refused.value).startswith(
        "The secrets of these webhooks cannot be read with the keys of K1NODE_KEYRING: crm (wh-2), billing (wh-1). Add"
    )
    assert "manage.py rotate_secrets --renew-unreadable" in str(refused.value)


def test_a_node_that_can_read_all_starts(under: Callable[..., None]) -> None:
    make_webhook(next_secret=NEXT, headers={"X-Tenant": "blue"})
    under(NEW, OLD)

    assert stored_secrets.why_not_start() == ""


def test_of_many_a_start_names_ten(under: Callable[..., None]) -> None:
    for _ in range(12):
        make_webhook()
    under(NEW)

    assert " and 2 more." in stored_secrets.why_not_start()


def test_a_start_looks_at_the_newest_thousand(under: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_secrets, "MOST_TESTED", 2)
    make_webhook(name="oldest")
    under(NEW)
    make_webhook()
    make_webhook()

    assert stored_secrets.why_not_start() == ""
    assert [webhook.name for webhook, _ in stored_secrets.unreadable()] == ["oldest"]


def test_a_start_reads_all_rows_at_once(
    under: Callable[..., None], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(3):
        make_webhook()

    with django_assert_num_queries(1):
        assert list(stored_secrets.unreadable(most=1000)) == []
