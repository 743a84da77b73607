"""The bases of every page of the console: where it stands in the menu, and what may be done there."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

OPERATE = "Operate"
RECORDS = "Records"
SET_UP = "Set up"
SECTIONS = (OPERATE, RECORDS, SET_UP)


def key_in(text: str) -> int:
    """Return the primary key that an address names, 0 (which no row has) for text that is none."""
    return int(text) if text.isdecimal() and len(text) < 19 else 0


class ConsoleAdmin(ModelAdmin):
    """`section` and `place` say where the menu has it (no section: not in the menu), `summary` what its rows are.

    `nothing` is said in place of a list that has no rows.
    """

    section: str | None = None
    place = 100
    summary = ""
    nothing = ""
    empty_value_display = "–"
    # Counts beside filters would count the tables that grow.
    show_facets = admin.ShowFacets.NEVER

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.section is not None and super().has_module_permission(request)


class ReadOnlyAdmin(ConsoleAdmin):
    """Rows that the machine writes: nobody adds, changes or deletes them here."""

    actions: tuple[str, ...] | None = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False
