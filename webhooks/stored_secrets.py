"""All stored secrets of webhooks: whether they can be read, and encrypting them anew under another key."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from k1node.lib import keyring
from k1node.lib.keyring import SecretUnreadable
from webhooks import signing_secrets
from webhooks.models import Webhook

FIELDS = ("secret", "next_secret", "headers")
PAGE = 200
MOST_TESTED = 1_000  # at the start of a node, which must not wait for more
MOST_NAMED = 10


@dataclass(slots=True)
class Report:
    """What a pass over all secrets has found and done."""

    encrypted: int = 0  # anew
    current: int = 0  # under the first key before
    unreadable: dict[int, tuple[str, ...]] = field(default_factory=dict)  # fields by webhook


def seal_anew() -> Report:
    """Put every secret under the first key of K1NODE_KEYRING that is under another one.

    Each is written for itself, and only if it is still what was read: so this may be stopped anywhere and begun again,
    and runs beside whatever else changes secrets. What changes meanwhile is looked at once more.
    """
    report = Report()
    for pk in list(Webhook.objects.order_by("pk").values_list("pk", flat=True)):
        bad = tuple(name for name in FIELDS if not _seal_one_anew(pk, name, report))
        if bad:
            report.unreadable[pk] = bad
    return report


def _seal_one_anew(pk: int, name: str, report: Report) -> bool:
    """Say whether the secret can be read; there may be none."""
    while True:
        webhook = Webhook.objects.filter(pk=pk).first()
        stored = "" if webhook is None else getattr(webhook, name)
        if webhook is None or not stored:
            return True
        try:
            text = signing_secrets.unsealed(webhook, name)
        except SecretUnreadable:
            return False
        if keyring.is_under_first_key(stored):
            report.current += 1
            return True
        sealed = signing_secrets.sealed(webhook.webhook_id, name, text)
        if Webhook.objects.filter(pk=pk, **{name: stored}).update(**{name: sealed}):
            report.encrypted += 1
            return True


def unreadable(*, most: int | None = None) -> Iterator[tuple[Webhook, tuple[str, ...]]]:
    """Give the webhooks, of the `most` newest, with the names of the secrets that cannot be read."""
    for webhook in Webhook.objects.filter(deleted_at=None).order_by("-pk")[:most].iterator(PAGE):
        if bad := tuple(name for name in FIELDS if not _is_readable(webhook, name)):
            yield webhook, bad


def _is_readable(webhook: Webhook, name: str) -> bool:
    try:
        signing_secrets.unsealed(webhook, name)
    except SecretUnreadable:
        return False
    return True


def why_not_start() -> str:
    """Return why a node with this keyring must not start, and what to do; "" if it may."""
    place = "the test at the start"
    if keyring.unseal(keyring.seal(place, place), place) != place:
        return "K1NODE_KEYRING does not give back what it encrypts."
    webhooks = [webhook for webhook, _ in unreadable(most=MOST_TESTED)]
    if not webhooks:
        return ""
    named = ", ".join(f"{webhook.name} ({webhook.webhook_id})" for webhook in webhooks[:MOST_NAMED])
    more = f" and {len(webhooks) - MOST_NAMED:,} more" if len(webhooks) > MOST_NAMED else ""
    return (
        f"The secrets of these webhooks cannot be read with the keys of K1NODE_KEYRING: {named}{more}. Add the key that"
        " they were encrypted with behind the present ones, and run `manage.py rotate_secrets` before you take it away."
        " If it is lost: `manage.py rotate_secrets --renew-unreadable` gives these webhooks new secrets."
    )
