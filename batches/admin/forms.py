"""The forms of batches."""

from collections.abc import Mapping
from typing import Any

from django import forms

TYPED_ABOVE = 1_000  # tasks whose number is typed in before something is done to all of them


class AskForm(forms.Form):
    """Why; and, of many tasks, how many: whoever types the number means all of them."""

    reason = forms.CharField(
        max_length=500,
        required=False,
        help_text="Shown to whoever wonders, and kept in the history.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    shown = forms.IntegerField(widget=forms.HiddenInput, required=False)
    number = forms.CharField(
        required=False, widget=forms.TextInput(attrs={"inputmode": "numeric", "autocomplete": "off"})
    )

    def __init__(self, number: int, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data, label_suffix="", initial={"shown": number})
        # What was shown counts, not what is there by now: a batch that goes on has another number every second.
        given = data.get("shown", "") if data else ""
        self.asked = int(given) if given.isdecimal() and len(given) < 10 else number
        if self.asked <= TYPED_ABOVE and number <= TYPED_ABOVE:
            del self.fields["number"]
        else:
            self.fields["number"].label = f"Type {self.asked} to mean all of them"

    def clean_number(self) -> str:
        typed: str = self.cleaned_data["number"].strip().replace(",", "")
        if typed != str(self.asked):
            raise forms.ValidationError(f"Type {self.asked}: so many tasks it is about.", code="number")
        return typed
