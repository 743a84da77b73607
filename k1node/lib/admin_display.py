"""How facts look on the console's pages: moments, lengths, sizes, badges, JSON. All text is escaped here."""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db import models
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

NOTHING = "–"
ICONS = "k1/icons.svg"

# Word -> (tone, icon). A badge is always word, shape and colour.
LOOKS: dict[str, tuple[str, str]] = {
    "scheduled": ("off", "clock"),
    "queued": ("off", "dashed"),
    "executing": ("run", "play"),
    "blocked": ("warn", "gate"),
    "paused": ("pause", "bars"),
    "completed": ("ok", "tick"),
    "failed": ("bad", "cross"),
    "skipped": ("off", "chevron"),
    "cancelled": ("off", "slash"),
    "timeout": ("bad", "clock"),
    "lost": ("bad", "question"),
    "drained": ("off", "back"),
    "fired": ("ok", "tick"),
    "late": ("warn", "clock"),
    "missed": ("bad", "cross"),
    "open": ("ok", "tick"),
    "closed": ("bad", "gate"),
    "breaker closed": ("ok", "switch-closed"),
    "breaker open": ("bad", "switch-open"),
    "breaker half-open": ("warn", "switch-half"),
    "letter pending": ("dead", "tray"),
    "letter resubmitted": ("run", "again"),
    "letter archived": ("off", "box"),
    "job planned": ("off", "dashed"),
    "job running": ("run", "play"),
    "job stopped": ("warn", "hand"),
    "job completed": ("ok", "tick"),
    "job cancelled": ("off", "slash"),
    "batch submitted": ("off", "dashed"),
    "batch in_progress": ("run", "play"),
    "batch paused": ("pause", "bars"),
    "batch completed": ("ok", "tick"),
    "batch completed_with_failures": ("warn", "tick"),
    "batch failed": ("bad", "cross"),
    "batch cancelled": ("off", "slash"),
    "webhook active": ("ok", "tick"),
    "webhook failing": ("bad", "again"),
    "webhook paused": ("pause", "bars"),
    "webhook disabled": ("bad", "cross"),
    "webhook deleted": ("off", "slash"),
    "delivery pending": ("off", "dashed"),
    "delivery retrying": ("warn", "again"),
    "delivery sending": ("run", "play"),
    "delivery delivered": ("ok", "tick"),
    "delivery failed": ("bad", "cross"),
    "delivery cancelled": ("off", "slash"),
    "attempt delivered": ("ok", "tick"),
    "attempt sending": ("run", "play"),
    "attempt unknown": ("warn", "question"),
    "attempt failed": ("bad", "cross"),
    "held": ("pause", "hand"),
    "enabled": ("ok", "tick"),
    "disabled": ("off", "slash"),
    "ended": ("off", "chevron"),
    "cannot fire": ("bad", "cross"),
    "live": ("ok", "tick"),
    "silent": ("bad", "question"),
    "active": ("ok", "tick"),
    "expired": ("off", "clock"),
    "rotated": ("warn", "again"),
    "revoked": ("off", "slash"),
}


# --- plain text -------------------------------------------------------------------------------------------------


def exact(at: datetime | None) -> str:
    """Return `2026-03-04 05:06:07 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if at else NOTHING


def relative(at: datetime, now: datetime) -> str:
    """Return `in 3 min`, `3 min ago`, or `now`."""
    seconds = round((at - now).total_seconds())
    if not seconds:
        return "now"
    words = duration(abs(seconds) * 1000)
    return f"in {words}" if seconds > 0 else f"{words} ago"


def duration(ms: float | None) -> str:
    """Return a length of time with its two leading units: `850 ms`, `4.2 s`, `3 min 10 s`, `2 d 3 h`."""
    if ms is None:
        return NOTHING
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f}".removesuffix(".0") + " s"
    left = round(ms / 1000)
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)


def size(count: int) -> str:
    """Return a number of bytes in words."""
    if count < 1000:
        return f"{count} byte{'' if count == 1 else 's'}"
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def first_line(text: str, length: int = 80) -> str:
    return Truncator(text.strip().split("\n", 1)[0]).chars(length)


# --- HTML -------------------------------------------------------------------------------------------------------


def moment(at: datetime | None) -> str:
    """Return the exact time as a <time>."""
    return format_html('<time datetime="{}">{}</time>', at.isoformat(), exact(at)) if at else NOTHING


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """Return the time relative to now; the exact one is its title."""
    if at is None:
        return NOTHING
    words = relative(at, now or timezone.now())
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), words)


def both(at: datetime | None, now: datetime | None = None) -> str:
    """Return the time relative to now, and the exact one below it."""
    if at is None:
        return NOTHING
    return two_lines(ago(at, now), format_html('<span class="k1-exact">{}</span>', exact(at)))


def two_lines(first: object, second: object) -> SafeString:
    return format_html('{}<span class="k1-second">{}</span>', first, second)


def badge(word: str, text: str = "") -> SafeString:
    """Return the badge of a state word; `text` is shown in its place."""
    tone, icon = LOOKS.get(word, ("off", "dashed"))
    return format_html(
        '<span class="k1-badge k1-{}"><svg class="k1-icon" aria-hidden="true"><use href="{}#{}"></use></svg>{}</span>',
        tone,
        static(ICONS),
        icon,
        text or word,
    )


def code(text: object) -> SafeString:
    return format_html('<code class="k1-code">{}</code>', text)


def pretty(value: object) -> SafeString:
    """Return JSON for reading: indented, keys in order, whatever it holds."""
    return format_html('<pre class="k1-json">{}</pre>', as_json(value))


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)


def page_of(row: models.Model) -> str:
    """Return the address of a row's page in the console."""
    return _page(row._meta, row.pk)


def _page(meta: Any, pk: object) -> str:
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=(quote(str(pk)),))


def link(row: models.Model, text: object = None) -> SafeString:
    return format_html('<a href="{}">{}</a>', page_of(row), row if text is None else text)


def list_of(model: type[models.Model], **query: object) -> str:
    """Return the address of a model's list, filtered."""
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist", query=query or None)
    return str(address)


# --- columns ----------------------------------------------------------------------------------------------------

Column = Callable[[Any, Any], str]


def column(title: str, show: Callable[[Any], str], ordering: str | None = None) -> Column:
    """Return a method for list_display or fields that shows `show(row)`."""

    @admin.display(description=title, ordering=ordering, empty_value=NOTHING)
    def method(_self: Any, row: Any) -> str:
        return show(row)

    return method


def moment_column(field: str, title: str, *, ordering: bool = False) -> Column:
    return column(title, lambda row: both(getattr(row, field)), field if ordering else None)


def duration_column(field: str, title: str) -> Column:
    return column(title, lambda row: duration(getattr(row, field)))


def badge_column(field: str, title: str) -> Column:
    return column(title, lambda row: badge(str(getattr(row, field))))


def json_column(field: str, title: str) -> Column:
    def show(row: Any) -> str:
        value = getattr(row, field)
        return NOTHING if value is None else pretty(value)

    return column(title, show)


def text_column(field: str, title: str) -> Column:
    """Return a method that shows a longer text with its line breaks."""

    def show(row: Any) -> str:
        text = getattr(row, field)
        return format_html('<pre class="k1-text">{}</pre>', text) if text else NOTHING

    return column(title, show)


def joined(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
