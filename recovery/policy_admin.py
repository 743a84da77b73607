"""Retry policies on the console: what operators change there is recorded as over the API, and they are retired."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from k1node.lib import admin_display as display
from k1node.lib.clock_time import database_now
from k1node.lib.errors import K1NodeError
from recovery import admin_words as words
from recovery import policies
from recovery.records import By
from scheduling.admin.policies import RetryPolicyAdmin
from scheduling.models import RetryPolicy
from scheduling.policies import FIGURES

admin.site.unregister(RetryPolicy)


@admin.register(RetryPolicy)
class SteeredPolicyAdmin(RetryPolicyAdmin):
    list_display = (*RetryPolicyAdmin.list_display, "state")
    list_filter = ("retired",)
    actions = ("retire", "restore")
    state = display.column("state", lambda row: "retired" if row.retired else "in use")

    def save_model(self, request: HttpRequest, obj: RetryPolicy, form: "forms.ModelForm[Any]", change: bool) -> None:
        by, now = By(request.user.get_username()), database_now()
        if change:
            # What another person has set meanwhile stays.
            changed = {name: form.cleaned_data[name] for name in form.changed_data}
            policies.configure(obj.pk, changed, by, now=now)
        else:
            policies.create(obj.pk, {name: form.cleaned_data[name] for name in FIGURES}, by, now=now)

    @admin.action(description="Retire: nothing new may name it", permissions=["change"])
    def retire(self, request: HttpRequest, queryset: QuerySet[RetryPolicy]) -> None:
        self._each(request, queryset, "Retired {}.", policies.retire)

    @admin.action(description="Restore", permissions=["change"])
    def restore(self, request: HttpRequest, queryset: QuerySet[RetryPolicy]) -> None:
        self._each(request, queryset, "Restored {}.", policies.restore)

    def _each(
        self, request: HttpRequest, rows: QuerySet[RetryPolicy], done: str, verb: Callable[..., RetryPolicy]
    ) -> None:
        by, now = By(request.user.get_username()), database_now()
        for name in rows.order_by("name").values_list("name", flat=True):
            try:
                verb(name, by, now=now)
            except K1NodeError as error:
                self.message_user(request, words.refusal(name, error), messages.WARNING)
            else:
                self.message_user(request, format_html(done, name))
