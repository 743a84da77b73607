"""The forms of webhooks. What may be said is decided by webhooks.endpoints, the same as over the API."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError

from k1node.events.catalogue import EVENTS
from k1node.lib.errors import InvalidRequest
from webhooks import endpoints
from webhooks.admin.words import GROUPS
from webhooks.api.redelivery_serializers import MOST_A_SECOND
from webhooks.models import Webhook

OVERLAPS = {
    "0": "not at all: the new one alone signs at once",
    "3600": "1 hour",
    "86400": "1 day",
    "604800": "7 days",
}
PLAIN = {"autocomplete": "off", "spellcheck": "false"}


class HeadersField(forms.CharField):
    """Headers, typed one a line, and never shown again."""

    widget = forms.Textarea(attrs={"rows": 3, **PLAIN})

    def to_python(self, value: Any) -> Any:
        found: dict[str, str] = {}
        for line in (super().to_python(value) or "").splitlines():
            if not line.strip():
                continue
            name, colon, text = line.partition(":")
            if not colon:
                raise ValidationError("Write each as Name: value, one a line.", code="invalid")
            if name.strip() in found:
                raise ValidationError(f"{name.strip()[:100]} is there twice.", code="twice")
            found[name.strip()] = text.strip()
        return found


class PlainForm(forms.Form):
    """A form that shows what a verb refuses at the fields that it is about."""

    def __init__(self, data: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(data, label_suffix="", **kwargs)

    def refuse(self, error: InvalidRequest) -> None:
        for detail in error.details:
            name, _, rest = detail.field.partition(".")
            said = " ".join(f"{text.rstrip('.')}." for text in (detail.message, self.advice(detail.suggestion)) if text)
            if rest and name == "headers":
                said = f"{rest}: {said}"
            self.add_error(name if name in self.fields else None, said)
        if not error.details:
            self.add_error(None, f"{error.message}.")

    @staticmethod
    def advice(text: str | None) -> str:
        """Return a suggestion that was written for callers of the API, if it helps here."""
        return (
            "" if text is None or "Leave it out" in text or "/api/" in text or '["*"]' in text or "{}" in text else text
        )


class WebhookForm(PlainForm):
    """Everything that people set of a webhook, but whether it is active."""

    name = forms.CharField(max_length=endpoints.LONGEST_NAME, widget=forms.TextInput(attrs=PLAIN))
    url = forms.CharField(
        label="URL",
        max_length=endpoints.LONGEST_URL,
        widget=forms.TextInput(attrs={"inputmode": "url", **PLAIN}),
        help_text="Events are posted there: https://example.org/hooks.",
    )
    every = forms.BooleanField(label="Every event, also those of later versions", required=False)
    events = forms.MultipleChoiceField(label="Events", required=False, widget=forms.CheckboxSelectMultiple)
    max_retries = forms.IntegerField(
        label="Retries",
        min_value=endpoints.RETRIES[0],
        max_value=endpoints.RETRIES[1],
        help_text="After the first try. A delivery is given up after the last.",
    )
    backoff_multiplier = forms.FloatField(
        label="Each wait is longer by",
        min_value=endpoints.MULTIPLIERS[0],
        max_value=endpoints.MULTIPLIERS[1],
        help_text="times the one before: 5 s, then 10 s, 20 s with 2; at most 15 min.",
    )
    max_in_flight = forms.IntegerField(
        label="At the same time",
        min_value=endpoints.IN_FLIGHT[0],
        max_value=endpoints.IN_FLIGHT[1],
        help_text="Requests it gets at once, at most.",
    )
    per_second = forms.IntegerField(
        label="A second",
        required=False,
        min_value=endpoints.RATES[0],
        max_value=endpoints.RATES[1],
        help_text="Requests it gets, at most. Empty: as fast as it takes them.",
    )
    headers = HeadersField(
        label="Headers of its own",
        required=False,
        help_text="One a line: Authorization: Bearer … They are sent with each request and never shown again.",
    )

    def __init__(self, row: Webhook | None, data: Mapping[str, Any] | None = None) -> None:
        self.row = row
        super().__init__(data, initial=_usual() if row is None else _of(row))
        events = self.fields["events"]
        assert isinstance(events, forms.MultipleChoiceField)
        events.choices = [(name, name) for name in endpoints.event_names()]

    def where(self) -> list[forms.BoundField]:
        return self._those("name", "url")

    def how(self) -> list[forms.BoundField]:
        return self._those("max_retries", "backoff_multiplier", "max_in_flight", "per_second")

    def rest(self) -> list[forms.BoundField]:
        return self._those("headers", "no_headers", "secret", "active")

    def _those(self, *names: str) -> list[forms.BoundField]:
        return [self[name] for name in names if name in self.fields]

    def groups(self) -> Iterator[tuple[str, list[tuple[Any, str]]]]:
        """Give the events by group, each with its box and what it says."""
        found: dict[str, list[tuple[Any, str]]] = {}
        for box in self["events"].subwidgets:
            name = str(box.data["value"])
            prefix = name.partition(".")[0]
            found.setdefault(prefix, []).append((box, EVENTS[name].summary))
        order = [*(prefix for prefix in GROUPS if prefix in found), *(name for name in found if name not in GROUPS)]
        for prefix in order:
            yield GROUPS.get(prefix, prefix.capitalize()), found[prefix]

    def values(self) -> dict[str, Any]:
        """Return what was typed; of a webhook that exists what was changed: what others change meanwhile stays."""
        cleaned = dict(self.cleaned_data)
        every, chosen = cleaned.pop("every"), cleaned.pop("events")
        cleaned["events"] = ["*"] if every else chosen
        if self.row is None:
            return cleaned
        changed = {name for name in self.changed_data if name in cleaned}
        if {"every", "events"} & set(self.changed_data):
            changed.add("events")
        return {name: cleaned[name] for name in changed}


class NewWebhookForm(WebhookForm):
    secret = forms.CharField(
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs=PLAIN),
        help_text="Empty: one is made. Your own: whsec_ and the base64 of 24 to 64 bytes.",
    )
    active = forms.BooleanField(label="Active at once", required=False, initial=True)

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(None, data)

    def values(self) -> dict[str, Any]:
        values = super().values()
        if not values["secret"]:
            del values["secret"]
        return values


class EditWebhookForm(WebhookForm):
    no_headers = forms.BooleanField(label="Take all headers away", required=False)

    def __init__(self, row: Webhook, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(row, data)
        if row.header_names:
            self.fields["headers"].help_text = (
                f"It has {', '.join(row.header_names)}, whose values are not shown. Empty: they stay, but for"
                " another host. What is written here takes the place of all of them, one a line: Name: value."
            )
        else:
            del self.fields["no_headers"]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("no_headers") and cleaned.get("headers"):
            self.add_error("no_headers", "Take them away, or write others: not both.")
        return cleaned

    def values(self) -> dict[str, Any]:
        values = super().values()
        values.pop("no_headers", None)
        if not self.cleaned_data.get("headers"):
            values.pop("headers", None)
        if self.cleaned_data.get("no_headers"):
            values["headers"] = {}
        return values


def _usual() -> dict[str, Any]:
    return {
        "max_retries": settings.WEBHOOK_MAX_RETRIES,
        "backoff_multiplier": Webhook._meta.get_field("backoff_multiplier").default,
        "max_in_flight": Webhook._meta.get_field("max_in_flight").default,
    }


def _of(row: Webhook) -> dict[str, Any]:
    return {
        "name": row.name,
        "url": row.url,
        "every": "*" in row.events,
        "events": [name for name in row.events if name != "*"],
        "max_retries": row.max_retries,
        "backoff_multiplier": f"{row.backoff_multiplier:g}",
        "max_in_flight": row.max_in_flight,
        "per_second": row.per_second,
        "headers": "",
    }


class RotateForm(PlainForm):
    overlap = forms.ChoiceField(
        label="How long the old secret signs too",
        choices=list(OVERLAPS.items()),
        initial="86400",
        widget=forms.RadioSelect,
        help_text="The time in which the receiver takes up the new one.",
    )
    secret = forms.CharField(
        label="New secret",
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs=PLAIN),
        help_text="Empty: one is made. Your own: whsec_ and the base64 of 24 to 64 bytes.",
    )


# --- which deliveries are sent again ----------------------------------------------------------------------------

SPANS = {
    "1h": ("the last hour", timedelta(hours=1)),
    "6h": ("the last 6 hours", timedelta(hours=6)),
    "1d": ("the last 24 hours", timedelta(days=1)),
    "7d": ("the last 7 days", timedelta(days=7)),
}
TROUBLE = "trouble"
FROM = "from"


class MomentField(forms.DateTimeField):
    """A moment in UTC, as browsers let it be chosen."""

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S")
        super().__init__(widget=widget, **kwargs)


class SpanForm(PlainForm):
    """Since when. It is sent by GET, so that what it shows is a link."""

    span = forms.ChoiceField(label="What time", widget=forms.RadioSelect)
    since = MomentField(label="From (UTC)", required=False)
    until = MomentField(label="Until (UTC)", required=False, help_text="Empty: until now.")

    def __init__(self, row: Webhook, data: Mapping[str, Any] | None, *, now: datetime) -> None:
        self.now = now
        self.trouble_since = row.failing_since or row.disabled_at
        spans = {name: text for name, (text, _) in SPANS.items()}
        if self.trouble_since is not None:
            spans = {TROUBLE: f"since it began to fail, {self.trouble_since:%Y-%m-%d %H:%M:%S} UTC"} | spans
        usual = next(iter(spans)) if TROUBLE in spans else "1d"
        super().__init__(data or {"span": usual})
        span = self.fields["span"]
        assert isinstance(span, forms.ChoiceField)
        span.choices = [*spans.items(), (FROM, "from a moment:")]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("span") == FROM and not cleaned.get("since") and "since" not in self.errors:
            self.add_error("since", "Say from when.")
        if cleaned.get("span", FROM) != FROM and (cleaned.get("since") or cleaned.get("until")):
            self.add_error("span", "A moment is written below, too: choose “from a moment”, or empty it.")
        return cleaned

    def bounds(self) -> tuple[datetime, datetime]:
        """Return what was chosen, to the second, so that an address says it whole."""
        span = self.cleaned_data["span"]
        if span == FROM:
            return self.cleaned_data["since"], self.cleaned_data["until"] or self.now
        if span == TROUBLE and self.trouble_since is not None:
            return self.trouble_since, self.now
        return self.now - SPANS[span][1], self.now


class AgainForm(PlainForm):
    """What was counted, and how fast it is to come."""

    since = forms.CharField(widget=forms.HiddenInput)
    until = forms.CharField(widget=forms.HiddenInput)
    per_second = forms.IntegerField(
        label="At most so many a second",
        required=False,
        min_value=1,
        max_value=MOST_A_SECOND,
        help_text="Empty: as fast as the webhook takes them.",
    )

    def clean_since(self) -> datetime:
        return _moment(self.cleaned_data["since"])

    def clean_until(self) -> datetime:
        return _moment(self.cleaned_data["until"])


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValidationError("Is no moment.", code="invalid") from None
