"""The forms of resubmissions: of one dead letter, of several, and of a redrive."""

import json
from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from k1node.api import parsers
from k1node.lib.errors import InvalidRequest
from k1node.operations.jobs import Pace
from recovery.models import DeadLetter
from recovery.retries import TIMEOUT, Changes
from scheduling import tasks
from scheduling.admin.fields import DurationField, JsonObjectField, in_units
from scheduling.models import RetryPolicy, Task

MOST_A_SECOND = 10_000
MOST_FIRST = 1_000
USUAL_FIRST = 5


class ParametersField(JsonObjectField):
    """A JSON object that the API would take, too."""

    def to_python(self, value: Any) -> Any:
        read = super().to_python(value)
        if isinstance(value, str):
            try:
                parsers.loads(value.encode("utf-8", "surrogatepass"))
            except InvalidRequest as error:
                raise ValidationError(_sentences(error.details[0].message), code="invalid") from None
        return read


class ReasonForm(forms.Form):
    """Why something is done."""

    reason = forms.CharField(
        max_length=500,
        required=False,
        help_text="Kept with each entry and in its history.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    def __init__(self, data: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(data, label_suffix="", **kwargs)

    def refuse(self, error: InvalidRequest) -> None:
        """Show what a verb has refused at the fields that it is about."""
        for detail in error.details:
            name, _, rest = detail.field.partition(".")
            if name == "parameters" and rest == TIMEOUT and TIMEOUT not in self.cleaned_data.get("parameters", {}):
                name, rest = "timeout", ""
            said = _sentences(f"{rest}: {detail.message}" if rest else detail.message, detail.suggestion)
            if name in self.fields:
                self.add_error(name, said)
            else:
                self.add_error(None, f"{detail.field}: {said}")
        if not error.details:
            self.add_error(None, _sentences(error.message))


class ChangesForm(ReasonForm):
    """What the new tasks have instead of what the old ones had."""

    parameters = ParametersField(
        label="Parameters to change",
        help_text='A JSON object, laid over the parameters of each, key by key: {"keep": 7}. {} changes none.',
    )
    timeout = DurationField(
        required=False,
        low=tasks.TIMEOUTS_MS[0],
        high=tasks.TIMEOUTS_MS[1],
        help_text="Empty: as each had it. 30 s, 15 min, 1 h 30 min.",
    )
    retry_policy = forms.ChoiceField(label="Retry policy", required=False)
    field_order: tuple[str, ...] = ("parameters", "timeout", "retry_policy", "reason")
    policy_kept = "as each had it"

    def __init__(self, data: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(data, **{"initial": {"parameters": {}}, **kwargs})
        policies = self.fields["retry_policy"]
        assert isinstance(policies, forms.ChoiceField)
        names = RetryPolicy.objects.filter(retired=False).values_list("pk", flat=True)
        policies.choices = [("", self.policy_kept), *((name, name) for name in names)]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("timeout") is not None and TIMEOUT in cleaned.get("parameters", {}):
            self.add_error("timeout", f"Say it once: the parameters have {TIMEOUT} too.")
        return cleaned

    def changes(self) -> Changes:
        given = dict(self.cleaned_data["parameters"])
        if self.cleaned_data["timeout"] is not None:
            given[TIMEOUT] = self.cleaned_data["timeout"]
        return Changes(given, self.cleaned_data["retry_policy"] or None)


class ResubmitForm(ChangesForm):
    """Of one entry: begins with what its task had, and finds out itself what was changed."""

    parameters = ParametersField(help_text="What the new task is given. Change what was wrong.")
    timeout = DurationField(
        low=tasks.TIMEOUTS_MS[0],
        high=tasks.TIMEOUTS_MS[1],
        help_text="A run that takes longer is ended: 30 s, 15 min, 1 h 30 min.",
    )

    def __init__(self, letter: DeadLetter, data: Mapping[str, Any] | None = None) -> None:
        task: Task = letter.task
        self.original: dict[str, Any] = task.parameters
        self.timeout_before = task.timeout_ms
        self.policy_kept = f"as it was: {task.retry_policy_id}"
        super().__init__(data, initial={"parameters": self.original, "timeout": task.timeout_ms})

    def clean(self) -> dict[str, Any]:
        cleaned = forms.Form.clean(self) or self.cleaned_data
        if "parameters" in cleaned:
            given = cleaned["parameters"]
            if missing := [name for name in self.original if name not in given]:
                self.add_error(
                    "parameters",
                    f"{', '.join(missing)}: cannot be taken away, as changes are laid over what was there. Set it to"
                    " null, or to another value.",
                )
            cleaned["changed"] = {
                name: value
                for name, value in given.items()
                if name not in self.original or not same(value, self.original[name])
            }
            timeout = cleaned.get("timeout")
            if TIMEOUT in cleaned["changed"] and timeout not in (None, self.timeout_before, given[TIMEOUT]):
                self.add_error("timeout", f"Say it once: the parameters have another {TIMEOUT}.")
        return cleaned

    def changes(self) -> Changes:
        given = dict(self.cleaned_data["changed"])
        if self.cleaned_data["timeout"] != self.timeout_before and TIMEOUT not in given:
            given[TIMEOUT] = self.cleaned_data["timeout"]
        return Changes(given, self.cleaned_data["retry_policy"] or None)


class RedriveForm(ChangesForm):
    """What is changed, and how the job goes about it."""

    first = forms.IntegerField(
        label="Try so many first",
        min_value=0,
        max_value=MOST_FIRST,
        help_text="The rest follows only if all of them complete. 0: all at once.",
    )
    per_second = forms.IntegerField(
        label="At most so many a second",
        required=False,
        min_value=1,
        max_value=MOST_A_SECOND,
        help_text="Empty: as fast as it goes.",
    )
    stop_when_open = forms.BooleanField(label="Stop if a breaker they name opens", required=False)
    field_order = ("parameters", "timeout", "retry_policy", "per_second", "first", "stop_when_open", "reason")

    def __init__(self, data: Mapping[str, Any] | None = None, *, initial: Mapping[str, Any] | None = None) -> None:
        usual = {"parameters": {}, "first": USUAL_FIRST, "stop_when_open": True}
        super().__init__(data, initial={**usual, **(initial or {})})

    def pace(self) -> Pace:
        return Pace(self.cleaned_data["per_second"], self.cleaned_data["first"])


def initial_of(arguments: Mapping[str, Any], pace: Pace, reason: str) -> dict[str, Any]:
    """Return what a RedriveForm begins with to plan the same once more."""
    return {
        "parameters": arguments.get("parameters") or {},
        "retry_policy": arguments.get("retry_policy") or "",
        "per_second": pace.per_second,
        "first": pace.first,
        "stop_when_open": bool(arguments.get("stop_when_breaker_opens")),
        "reason": reason,
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what is not the same in two sets of parameters: name, old, new, as JSON ("" is: not there)."""
    names = [*old, *(name for name in new if name not in old)]
    return [
        (name, _json(old, name), _json(new, name))
        for name in names
        if name not in old or name not in new or not same(old[name], new[name])
    ]


def same(one: Any, other: Any) -> bool:
    """Say whether two values are the same JSON: 1, 1.0 and true are three."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def timeout_difference(old: int, new: int) -> list[tuple[str, str, str]]:
    return [] if old == new else [("timeout", in_units(old), in_units(new))]


def _json(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else ""


def _sentences(*texts: str | None) -> str:
    return " ".join(text if text.endswith((".", "?")) else f"{text}." for text in texts if text)
