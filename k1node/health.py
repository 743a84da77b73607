"""Is the process alive, and can this node do its work: for load balancers, supervisors and people."""

import logging

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string
from django.views.decorators.http import require_safe

from k1node.api.guard import ALIVE
from k1node.api.renderers import JSON, dumps

logger = logging.getLogger(__name__)


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """Answer while the process lives, whatever else is broken. (Under ASGI the guard answers this itself.)"""
    return HttpResponse(ALIVE, content_type=JSON)


@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 only when database, clock and workers of this node do their part, else 503 with what does not."""
    checks = _checks()
    ready = all(checks.values())
    body = {"status": "ready" if ready else "not ready", "checks": checks}
    response = HttpResponse(dumps(body), status=200 if ready else 503, content_type=JSON)
    response["Cache-Control"] = "no-store"
    # A node that is starting or draining is no error for Django to log at every probe.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def _checks() -> dict[str, bool]:
    path = getattr(settings, "K1NODE_READINESS", "scheduling.queries.readiness")
    try:
        return dict(import_string(path)())
    except Exception:
        # Whatever it is, the answer must be "not ready" and not an error page.
        logger.exception("Readiness check failed")
        return {"database": False, "clock": False, "workers": False}
