"""Filters and tags of the console's templates: the same words and shapes as in its lists."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypedDict

from django import template
from django.contrib import admin

from k1node.lib import admin_display
from k1node.lib.admin_base import SECTIONS, SET_UP
from scheduling.admin import records
from scheduling.admin import tasks as task_pages

register = template.Library()

register.filter("exact", admin_display.exact)
register.filter("moment", admin_display.moment)
register.filter("both", admin_display.both)
register.filter("duration", admin_display.duration)
register.filter("size", admin_display.size)
register.filter("badge", admin_display.badge)
register.filter("page_of", admin_display.page_of)
register.filter("status_badge", task_pages.status_badge)
register.filter("took", task_pages.took)


@register.filter
def ago(at: datetime | None, now: datetime | None = None) -> str:
    return admin_display.ago(at, now)


@register.filter
def decision(word: str) -> str:
    return records.DECISIONS.get(word, word)


class Entry(TypedDict):
    name: str
    summary: str
    address: str
    add: str | None


@register.simple_tag
def sections(app_list: Iterable[dict[str, Any]]) -> list[tuple[str, list[Entry]]]:
    """Return the menu: what this person may open, by section, in our order and not by app."""
    found: dict[str, list[tuple[int, Entry]]] = {section: [] for section in SECTIONS}
    for app in app_list:
        for model in app["models"]:
            page = admin.site.get_model_admin(model["model"])
            entry = Entry(
                name=model["name"],
                summary=getattr(page, "summary", ""),
                address=model["admin_url"] or "",
                add=model["add_url"],
            )
            if entry["address"]:
                section = getattr(page, "section", None) or SET_UP
                found[section].append((getattr(page, "place", 100), entry))
    return [
        (section, [entry for _, entry in sorted(entries, key=lambda item: item[0])])
        for section, entries in found.items()
        if entries
    ]
