"""Retry policies: the one set-up of scheduling that operators edit by hand."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.http import HttpRequest

from k1node.lib import admin_display as display
from k1node.lib.admin_base import SET_UP, ConsoleAdmin
from scheduling.admin.fields import DurationField
from scheduling.models import RetryPolicy
from scheduling.policies import ATTEMPTS, DEADLINES_MS, MULTIPLIERS, NAME_RULE, SHOWN_WAITS, WAITS_MS, waits_ms
from scheduling.tasks import NAME


class RetryPolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    max_attempts = forms.IntegerField(
        label="Attempts",
        min_value=ATTEMPTS[0],
        max_value=ATTEMPTS[1],
        help_text="The first try included; 1 means no retry.",
    )
    first_wait_ms = DurationField(label="First wait", high=WAITS_MS[1], help_text="30 s, 5 min")
    multiplier = forms.FloatField(
        min_value=MULTIPLIERS[0], max_value=MULTIPLIERS[1], help_text="Each wait is this many times the one before."
    )
    cap_ms = DurationField(label="Longest wait", high=WAITS_MS[1], help_text="No wait is longer, before the jitter.")
    deadline_ms = DurationField(
        label="Deadline",
        low=DEADLINES_MS[0],
        high=DEADLINES_MS[1],
        required=False,
        help_text="No retry is due later than this after the first start; empty means no deadline.",
    )

    class Meta:
        model = RetryPolicy
        fields = ("name", "max_attempts", "first_wait_ms", "multiplier", "cap_ms", "jitter", "deadline_ms")
        help_texts = {
            "name": "Schedules and tasks refer to it by this name. Cannot be changed later.",
            "jitter": "full: from nothing to the whole wait. equal: from half to the whole. none: the wait itself.",
        }

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not NAME.fullmatch(name):
            raise forms.ValidationError(f"Is not a usable name. {NAME_RULE}.")
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        first, cap = cleaned.get("first_wait_ms"), cleaned.get("cap_ms")
        if first is not None and cap is not None and cap < first:
            self.add_error("cap_ms", "Must not be shorter than the first wait.")
        return cleaned


def waits(policy: RetryPolicy) -> str:
    """Return the waits before the retries, without their jitter."""
    if policy.max_attempts == 1:
        return "no retry"
    more = " …" if policy.max_attempts - 1 > SHOWN_WAITS else ""
    return display.joined(display.duration(length) for length in waits_ms(policy)) + more


@admin.register(RetryPolicy)
class RetryPolicyAdmin(ConsoleAdmin):
    section = SET_UP
    place = 10
    summary = "How often, and after which waits, failed tasks are tried again"
    form = RetryPolicyForm
    list_display: tuple[str, ...] = ("name", "max_attempts", "waits_between", "longest", "jitter", "deadline")
    show_full_result_count = False
    actions: tuple[str, ...] | None = None
    waits_between = display.column("waits, before the jitter", waits)
    longest = display.duration_column("cap_ms", "longest wait")
    deadline = display.duration_column("deadline_ms", "deadline")

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return ("name",) if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        # Millions of kept tasks may name it, and there is no index to ask.
        return False
