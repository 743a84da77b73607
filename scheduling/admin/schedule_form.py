"""The form of a schedule. Shapes are checked here; whether it can run is judged by scheduling.schedules alone."""

from collections.abc import Sequence
from typing import Any

from django import forms

from k1node.lib.errors import Detail
from scheduling import schedules, tasks
from scheduling.admin.fields import DurationField, JsonObjectField
from scheduling.models import CatchUp, OverlapPolicy, RetryPolicy, Schedule, ScheduleType

TYPES = ((ScheduleType.CRON, "at times (cron)"), (ScheduleType.EVENT, "when an event happens"))
OVERLAPS = (
    (OverlapPolicy.ALLOW, "Run beside it"),
    (OverlapPolicy.SKIP, "Leave this run out"),
    (OverlapPolicy.QUEUE_ONE, "Wait behind it; one may wait, others are left out"),
    (OverlapPolicy.CANCEL_RUNNING, "End the earlier run, then run"),
)
USUAL_OVERLAP = ("", "As usual: at times, leave this run out; on events, run beside it")
CATCH_UPS = (
    (CatchUp.NONE, "Leave them out"),
    (CatchUp.LAST, "Run the last one"),
    (CatchUp.ALL, "Run all of them, up to the limits below"),
)
LABELS = {
    "task_id": "Schedule id",
    "task_name": "Name",
    "schedule_type": "Runs",
    "schedule_expr": "Expression or event",
    "timezone": "Time zone",
    "overlap_policy": "If an earlier run has not ended",
    "catch_up": "Slots that passed while no clock ran",
    "catch_up_cap": "Late runs at one time",
    "starts_at": "Not before (UTC)",
    "ends_at": "Not after (UTC)",
    "paused_until": "Paused until (UTC)",
    "skip_next": "Skip the next run",
}
HELP = {
    "task_id": "Its runs are named after it: backup-daily-20260304T020000Z. Cannot be changed later.",
    "handler": "A script with fixed arguments (bash ops/agents/backup.sh), or python: and a registered name.",
    "schedule_expr": "Five fields (0 2 * * * is every day at 02:00) or @daily; for events a name (order.created) "
    "or its beginning and a star (order.*).",
    "timezone": "An IANA name such as Europe/Berlin. Cron times are read in it.",
    "circuit_breaker": "Empty: none. default: one of its own. Any other name is shared by all that use it.",
    "paused_until": "Slots before this are recorded as skipped. Empty: not paused.",
    "pause_reason": "Shown to whoever wonders why it does not run.",
    "skip_next": "Taken back by itself once a run has been left out.",
    "enabled": "Off: no slots at all, until it is switched on again.",
}


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """`refusals` are what the verb said about a first try; they are shown at their fields."""

    refusals: Sequence[Detail] = ()

    parameters = JsonObjectField(help_text='A JSON object, given to the handler: {"keep": 7}.')
    event_filter = JsonObjectField(
        help_text='Events only: metadata that must be equal. Keys may be paths: {"repo.name": "k1"}.'
    )
    timeout_ms = DurationField(
        label="Timeout",
        low=tasks.TIMEOUTS_MS[0],
        high=tasks.TIMEOUTS_MS[1],
        help_text="A run that takes longer is ended: 30 s, 15 min, 1 h 30 min.",
    )
    jitter_ms = DurationField(
        label="Jitter",
        high=schedules.MAX_JITTER_MS,
        help_text="Runs start up to this long after their slot, each slot always by the same. 0 s: none.",
    )
    catch_up_window_ms = DurationField(
        label="Catch-up window", high=schedules.MAX_WINDOW_MS, help_text="Older slots are left out as missed."
    )
    schedule_type = forms.ChoiceField(label=LABELS["schedule_type"], choices=TYPES, widget=forms.RadioSelect)
    catch_up = forms.ChoiceField(label=LABELS["catch_up"], choices=CATCH_UPS)
    catch_up_cap = forms.IntegerField(
        label=LABELS["catch_up_cap"], min_value=0, max_value=schedules.MAX_CATCH_UP_CAP, help_text="0 to 1,000."
    )
    overlap_policy = forms.ChoiceField(label=LABELS["overlap_policy"], choices=OVERLAPS)
    priority = forms.IntegerField(
        min_value=tasks.PRIORITIES[0], max_value=tasks.PRIORITIES[1], help_text="1 to 10; 10 is the most urgent."
    )
    retry_policy = forms.ModelChoiceField(RetryPolicy.objects.filter(retired=False), empty_label=None)

    class Meta:
        model = Schedule
        fields = ("task_id", *schedules.EDITABLE)
        labels = LABELS
        help_texts = HELP

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_new = self.instance.pk is None
        if self.is_new:
            self._begin()
        # Fields are missing where a person may only look.
        if isinstance(policies := self.fields.get("retry_policy"), forms.ModelChoiceField):
            # Asked for once, and not at every look.
            known = RetryPolicy.objects.filter(retired=False).values_list("pk", flat=True)
            policies.choices = [(name, name) for name in known]

    def _begin(self) -> None:
        """Fill the form of a new schedule with what the model would; Django does not for fields declared here."""
        usual = forms.model_to_dict(Schedule(), self.Meta.fields)
        usual |= {"overlap_policy": "", "schedule_type": ScheduleType.CRON}
        self.initial = {**usual, **self.initial}
        if isinstance(policy := self.fields.get("overlap_policy"), forms.ChoiceField):
            policy.choices, policy.required = (USUAL_OVERLAP, *OVERLAPS), False

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        for detail in self.refusals:
            name = detail.field.split(".")[0].split("[")[0]
            path = f"{detail.field}: " if detail.field != name else ""
            sentences = (f"{path}{detail.message}", detail.suggestion or "")
            text = " ".join(each if each.endswith((".", "?")) else f"{each}." for each in sentences if each)
            self.add_error(name if name in self.fields else None, text)
        return cleaned

    def values(self) -> dict[str, Any]:
        """Return what the verbs take: everything of a new schedule, of another only what was changed here."""
        names = list(self.cleaned_data) if self.is_new else [n for n in self.changed_data if n in self.cleaned_data]
        values = {name: self.cleaned_data[name] for name in names}
        if "retry_policy" in values:
            values["retry_policy"] = values["retry_policy"].pk
        if not values.get("overlap_policy", "-"):
            del values["overlap_policy"]
        return values
