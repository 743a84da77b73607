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
from scheduling.tasks import NAME, NAME_RULE

MOST_WAIT_MS = 30 * 86_400_000
MOST_ATTEMPTS = 100
MOST_MULTIPLIER = 10
SHOWN_WAITS = 6


class RetryPolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    max_attempts = forms.IntegerField(
        label="Attempts", min_value=1, max_value=MOST_ATTEMPTS, help_text="The first try included; 1 means no retry."
    )
    first_wait_ms = DurationField(label="First wait", high=MOST_WAIT_MS, help_text="30 s, 5 min")
    multiplier = forms.FloatField(
        min_value=1, max_value=MOST_MULTIPLIER, help_text="Each wait is this many times the one before."
    )
    cap_ms = DurationField(label="Longest wait", high=MOST_WAIT_MS, help_text="No wait is longer, before the jitter.")
    deadline_ms = DurationField(
        label="Deadline",
        low=1000,
        high=MOST_WAIT_MS,
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
    count = policy.max_attempts - 1
    lengths = [
        min(policy.cap_ms, policy.first_wait_ms * policy.multiplier**number)
        for number in range(min(count, SHOWN_WAITS))
    ]
    return display.joined(display.duration(length) for length in lengths) + (" …" if count > SHOWN_WAITS else "")


@admin.register(RetryPolicy)
class RetryPolicyAdmin(ConsoleAdmin):
    section = SET_UP
    place = 10
    summary = "How often, and after which waits, failed tasks are tried again"
    form = RetryPolicyForm
    list_display = ("name", "max_attempts", "waits_between", "longest", "jitter", "deadline")
    show_full_result_count = False
    actions = None
    waits_between = display.column("waits, before the jitter", waits)
    longest = display.duration_column("cap_ms", "longest wait")
    deadline = display.duration_column("deadline_ms", "deadline")

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return ("name",) if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        # Millions of kept tasks may name it, and there is no index to ask.
        return False
