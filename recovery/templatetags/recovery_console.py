"""What the console's frame and its overview tell of the hold."""

from django import template
from django.http import HttpRequest

from recovery import holds
from recovery.models import Hold

register = template.Library()


@register.simple_tag(takes_context=True)
def current_hold(context: template.Context) -> Hold | None:
    """Return the hold that goes on; asked for once, however many parts of a page show it."""
    request: HttpRequest = context["request"]
    if not hasattr(request, "k1_hold"):
        request.k1_hold = holds.current()  # type: ignore[attr-defined]
    found: Hold | None = request.k1_hold  # type: ignore[attr-defined]
    return found
