"""People who sign in to the console, and what it lets them do, as scopes."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import Permission
from django.db.models import Exists, OuterRef, Q

from k1node.access.scopes import ADMIN

CONSOLE_SCOPES = {"dashboard:read": "scheduling.view_task", "dashboard:write": "scheduling.change_task"}


def may_sign_in(user: Any) -> bool:
    return bool(user is not None and user.is_active and user.is_staff)


def scopes_of(user: Any, holds: Callable[[str], bool] | None = None) -> frozenset[str]:
    """Return what this person may do now; nothing for one who may not sign in to the console.

    `holds` answers for a permission where the database was asked already (see held), else the user is.
    """
    if not may_sign_in(user):
        return frozenset()
    if user.is_superuser:
        return frozenset({ADMIN})
    holds = holds or user.has_perm
    return frozenset(scope for scope, permission in CONSOLE_SCOPES.items() if holds(permission))


def held(user: str) -> dict[str, Exists]:
    """Return annotations for a query over rows that have a user in the column `user`: does he hold it, directly or by
    a group? Their names are those of flag()."""
    found = {}
    for permission in CONSOLE_SCOPES.values():
        app, _, codename = permission.partition(".")
        named = Permission.objects.filter(content_type__app_label=app, codename=codename)
        found[flag(permission)] = Exists(named.filter(Q(user=OuterRef(user)) | Q(group__user=OuterRef(user))))
    return found


def flag(permission: str) -> str:
    return f"holds_{permission.replace('.', '_')}"
