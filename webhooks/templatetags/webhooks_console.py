"""What the console's overview tells of webhooks."""

from dataclasses import dataclass, field

from django import template
from django.db.models import Q
from django.http import HttpRequest
from django.utils.safestring import SafeString

from k1node.lib.clock_time import database_now
from webhooks import endpoints, rules
from webhooks.admin import words
from webhooks.counts import Waiting
from webhooks.models import Webhook

MOST = 10

register = template.Library()


@dataclass(frozen=True, slots=True)
class Ailing:
    """A webhook that was disabled or to which nothing arrives."""

    row: Webhook
    badge: SafeString
    said: SafeString


@dataclass(frozen=True, slots=True)
class Trouble:
    """`is_watched`: this person may see webhooks at all; `more`: there are more of them than `ailing` has."""

    is_watched: bool = False
    ailing: list[Ailing] = field(default_factory=list)
    more: bool = False


@register.simple_tag(takes_context=True)
def webhook_trouble(context: template.Context) -> Trouble:
    """Return the webhooks that need a person, those this one may see; one query."""
    request: HttpRequest = context["request"]
    if not any(request.user.has_perm(f"webhooks.{verb}_webhook") for verb in ("view", "change")):
        return Trouble()
    failing = Q(active=True, failures__gte=rules.OPEN_AFTER)
    disabled = Q(active=False, disabled_at__isnull=False)
    rows = list(endpoints.present().filter(failing | disabled)[: MOST + 1])
    now = database_now()
    return Trouble(
        True,
        [Ailing(row, words.badge_of(row), words.trouble(row, Waiting(), now)[1]) for row in rows[:MOST]],
        len(rows) > MOST,
    )
