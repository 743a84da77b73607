"""The end of a rotation: once, at its time, and never over what somebody did meanwhile."""

from datetime import timedelta
from typing import Any

import pytest

from tests.factories import NOW, SECRET, make_webhook
from webhooks import rotation, signing, signing_secrets
from webhooks.models import Webhook

pytestmark = pytest.mark.django_db

NEXT = signing.new_secret()


def test_at_its_time_the_next_secret_becomes_the_secret() -> None:
    webhook = make_webhook(next_secret=NEXT, rotates_at=NOW)

    assert rotation.finish_due(now=NOW - timedelta(microseconds=1)) == 0
    assert rotation.finish_due(now=NOW) == 1
    assert rotation.finish_due(now=NOW) == 0

    webhook.refresh_from_db()
    assert signing_secrets.keys(webhook, now=NOW) == (NEXT,)
    assert (webhook.secret_hint, webhook.next_secret, webhook.next_secret_hint) == (NEXT[-4:], "", "")
    assert (webhook.rotates_at, webhook.updated_at) == (None, NOW)


def test_who_signs_sees_no_difference() -> None:
    webhook = make_webhook(next_secret=NEXT, rotates_at=NOW)
    before = signing_secrets.keys(webhook, now=NOW)

    rotation.finish_due(now=NOW)

    webhook.refresh_from_db()
    assert signing_secrets.keys(webhook, now=NOW) == before


@pytest.mark.parametrize("change", ["rotated again", "finished", "deleted"])
def test_what_somebody_has_done_since_it_was_read_stands(change: str) -> None:
    webhook = make_webhook(next_secret=NEXT, rotates_at=NOW)
    acts: dict[str, dict[str, Any]] = {
        "rotated again": {
            "secret": signing_secrets.sealed(webhook.webhook_id, "secret", NEXT),
            "next_secret": signing_secrets.sealed(webhook.webhook_id, "next_secret", SECRET),
            "rotates_at": NOW + timedelta(days=1),
        },
        "finished": {
            "secret": signing_secrets.sealed(webhook.webhook_id, "secret", NEXT),
            "next_secret": "",
            "rotates_at": None,
        },
        "deleted": {"secret": "", "next_secret": "", "rotates_at": None, "deleted_at": NOW},
    }
    theirs = acts[change]

    Webhook.objects.update(**theirs)
    assert rotation._finish(webhook, NOW) == 0

    assert Webhook.objects.filter(**theirs).exists()


def test_one_that_cannot_be_read_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    broken = make_webhook(next_secret=NEXT, rotates_at=NOW - timedelta(days=1))
    Webhook.objects.filter(pk=broken.pk).update(next_secret="gAAAA")
    make_webhook(next_secret=NEXT, rotates_at=NOW)

    assert rotation.finish_due(now=NOW) == 1
    assert "cannot be read" in caplog.text
    assert NEXT not in caplog.text
