"""The forms of breakers and of the hold. What may be set of a breaker is the same here as over the API."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django import forms

from recovery.api.breaker_serializers import LONGEST_MS
from recovery.breakers import FIGURES
from recovery.models import Breaker
from scheduling.admin.fields import DurationField, in_units

LENGTHS = {
    "15 min": timedelta(minutes=15),
    "1 h": timedelta(hours=1),
    "4 h": timedelta(hours=4),
}
NO_END = "no end"
USUAL = "1 h"  # what somebody forgets ends by itself


class UntilForm(forms.Form):
    """Why, and for how long. `without_end` says what ends it if no time does."""

    reason = forms.CharField(
        max_length=500,
        required=False,
        help_text="Shown to whoever wonders, and kept in the history.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    until = forms.ChoiceField(label="For how long", widget=forms.RadioSelect, initial=USUAL)

    def __init__(self, data: Mapping[str, Any] | None = None, *, without_end: str) -> None:
        super().__init__(data, label_suffix="")
        until = self.fields["until"]
        assert isinstance(until, forms.ChoiceField)
        until.choices = [*((length, length) for length in LENGTHS), (NO_END, without_end)]

    def end(self, now: datetime) -> datetime | None:
        length = LENGTHS.get(self.cleaned_data["until"])
        return now + length if length else None


class SettingsForm(forms.Form):
    """What can be set of a breaker."""

    window_size = forms.IntegerField(
        label="Calls judged", min_value=1, max_value=1000, help_text="The newest ones; 1 to 1,000."
    )
    min_calls = forms.IntegerField(
        label="Calls needed", min_value=1, max_value=1000, help_text="Fewer than these never open it."
    )
    failure_percent = forms.IntegerField(
        label="Failed, in percent", min_value=1, max_value=100, help_text="So many of them failed open it."
    )
    open_ms = DurationField(label="Open for", low=100, high=LONGEST_MS, help_text="At first: 60 s, 5 min.")
    open_cap_ms = DurationField(
        label="Open for at most", low=100, high=LONGEST_MS, help_text="Doubled so far while its probes fail."
    )
    probes = forms.IntegerField(
        label="Probes", min_value=1, max_value=100, help_text="Calls that try it when half-open and must succeed."
    )

    def __init__(self, row: Breaker, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data, label_suffix="", initial={name: getattr(row, name) for name in FIGURES})

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        window, calls = cleaned.get("window_size"), cleaned.get("min_calls")
        if window is not None and calls is not None and calls > window:
            self.add_error("min_calls", f"Must not be more than the calls judged, {window}.")
        first, cap = cleaned.get("open_ms"), cleaned.get("open_cap_ms")
        if first is not None and cap is not None and cap < first:
            self.add_error("open_cap_ms", f"Must not be shorter than it is open at first, {in_units(first)}.")
        return cleaned

    def values(self) -> dict[str, int]:
        """Return what was changed: what another person has set meanwhile stays."""
        return {name: self.cleaned_data[name] for name in self.changed_data}
