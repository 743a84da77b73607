"""How often one may try at the doors that people and their apps come through: the sign-in page and /oauth/*.

django-ratelimit counts, in fixed windows, in the shared cache; whoever cannot be counted is turned away. The API itself
has limits of its own.
"""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest
from django_ratelimit.core import get_usage

from k1node.lib import origin

UNCOUNTED_SECONDS = 5  # how long to wait where the count is not known


def address_of(request: HttpRequest) -> str:
    """Return what django-ratelimit takes for the client's address (RATELIMIT_IP_META_KEY)."""
    asked_from = origin.current()
    address = asked_from.address if asked_from else origin.client_address(request, settings.K1NODE_TRUSTED_PROXIES)
    # All that have none, behind a Unix socket, share one count.
    return "0.0.0.0" if address == origin.UNKNOWN else address  # noqa: S104


def seconds_to_wait(
    request: HttpRequest, door: str, rate: str, *, key: str | Callable[[str, HttpRequest], str] = "ip"
) -> int:
    """Count this request at `door`; return 0 if it may pass, else the seconds until the next may."""
    usage = get_usage(request, group=door, key=key, rate=rate, increment=True)
    if usage is None or not usage["should_limit"]:
        return 0
    return max(1, usage["time_left"]) if usage["limit"] else UNCOUNTED_SECONDS
