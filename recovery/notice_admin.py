"""Notices on the console: the rules that operators write, and the record of the mails."""

import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html

from k1node.audit.admin_log import AuditedAdmin
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS, SET_UP, ConsoleAdmin, ReadOnlyAdmin
from k1node.lib.admin_paging import KeysetAdmin
from k1node.lib.clock_time import database_now
from recovery import notice_mails, notices
from recovery.models import FailingSchedule, NoticeMail, NoticeReader, NoticeRule
from recovery.notice_rules import DEFAULT_WINDOW, WINDOWS, Kind, check_addresses, total_words, usual_kinds
from scheduling.models import Schedule

NO_SERVER = "No mail is sent: EMAIL_HOST is not set. What the rules collect is kept until it is."


class AddressesField(forms.CharField):
    """A list of addresses, shown and typed one a line."""

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.Textarea(attrs={"rows": 4, "cols": 40, "spellcheck": "false"})
        super().__init__(widget=widget, validators=[check_addresses], **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        text = super().to_python(self.prepare_value(value)) or ""
        return [address for address in re.split(r"[\s,;]+", text) if address]


class NoticeRuleForm(forms.ModelForm):  # type: ignore[type-arg]
    addresses = AddressesField(help_text="One a line. Nobody sees the others.")
    kinds = forms.MultipleChoiceField(
        label="About", choices=Kind.choices, initial=usual_kinds, widget=forms.CheckboxSelectMultiple
    )
    schedule = forms.CharField(
        required=False,
        max_length=120,
        help_text="The id of a schedule: its tasks and the breaker it names. Empty: everything.",
    )
    window_seconds = forms.IntegerField(
        label="Window, in seconds",
        initial=DEFAULT_WINDOW,
        min_value=WINDOWS[0],
        max_value=WINDOWS[1],
        help_text="What happens within it makes one mail; the first one goes after ten seconds.",
    )

    class Meta:
        model = NoticeRule
        fields = ("name", "enabled", "addresses", "kinds", "schedule", "window_seconds")
        help_texts = {
            "name": "Said at the end of each mail.",
            "enabled": "Off: nothing is collected, and what was collected before waits.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.schedule_id is not None:
            named = Schedule.objects.filter(pk=self.instance.schedule_id).first()
            # Of a deleted one the field is not left empty, which would mean everything.
            self.initial["schedule"] = named.task_id if named else f"{self.instance.schedule_id}, deleted"

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():
            raise forms.ValidationError("Must be printable characters.")
        return name

    def clean_schedule(self) -> Schedule | None:
        name: str = self.cleaned_data["schedule"]
        if not name:
            return None
        found = Schedule.objects.filter(task_id=name).first()
        if found is None:
            raise forms.ValidationError(f"There is no schedule '{name}'.")
        return found


def stands(rule: NoticeRule) -> str:
    """Return how the mails of a rule fare."""
    waiting: list[NoticeMail] = rule.unsent  # type: ignore[attr-defined]
    if rule.last_error:
        return display.two_lines(display.badge("failed"), display.first_line(rule.last_error, 200))
    if not rule.enabled:
        return display.badge("disabled")
    if waiting:
        count = sum(sum(mail.counts.values()) for mail in waiting)
        return display.two_lines(display.badge("queued", "collecting"), f"{count:,} for the next mail")
    return display.badge("enabled")


@admin.register(NoticeRule)
class NoticeRuleAdmin(AuditedAdmin, ConsoleAdmin):
    section = SET_UP
    place = 15
    summary = "Whom to tell by e-mail what failed, and what recovered"
    form = NoticeRuleForm
    list_display = ("name", "stand", "to", "about", "scope", "window", "sent")
    show_full_result_count = False
    sortable_by = ()
    actions = ("send_test",)
    stand = display.column("state", stands)
    to = display.column("to", lambda rule: display.joined(rule.addresses))
    about = display.column("about", lambda rule: display.joined(Kind(kind).label for kind in rule.kinds))
    window = display.column("window", lambda rule: display.duration(rule.window_seconds * 1000))
    sent = display.column(
        "last mail", lambda rule: display.both(rule.last_sent_at) if rule.last_sent_at else "none yet"
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        unsent = Prefetch("mails", NoticeMail.objects.filter(sent_at=None), to_attr="unsent")
        return super().get_queryset(request).select_related("schedule").prefetch_related(unsent)

    @admin.display(description="scope")
    def scope(self, rule: NoticeRule) -> str:
        if rule.schedule_id is None:
            return "everything"
        return rule.schedule.task_id if rule.schedule else "a schedule that was deleted"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return (*NoticeRuleForm.Meta.fields, *self.get_readonly_fields(request, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("stand", "sent") if obj else ()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        self._warn(request)
        return super().changelist_view(request, extra_context)

    def render_change_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        self._warn(request)
        return super().render_change_form(request, *args, **kwargs)

    def _warn(self, request: HttpRequest) -> None:
        # A request that ends in a redirect would show it twice.
        if request.method == "GET" and not notice_mails.is_set_up():
            self.message_user(request, NO_SERVER, messages.WARNING)

    def save_model(self, request: HttpRequest, obj: NoticeRule, form: Any, change: bool) -> None:
        notices.keep(obj, now=database_now())

    def delete_model(self, request: HttpRequest, obj: NoticeRule) -> None:
        notices.forget(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[NoticeRule]) -> None:
        for rule in queryset:
            notices.forget(rule)

    @admin.action(description="Send a test mail", permissions=["change"])
    def send_test(self, request: HttpRequest, queryset: QuerySet[NoticeRule]) -> None:
        for rule in queryset:
            if trouble := notice_mails.send_test(rule):
                self.message_user(request, format_html("{}: not sent. {}", rule.name, trouble), messages.ERROR)
            else:
                text = format_html("{}: the server took a mail to {}.", rule.name, display.joined(rule.addresses))
                self.message_user(request, text, messages.SUCCESS)


def mail_state(mail: NoticeMail) -> str:
    if mail.sent_at:
        return display.two_lines(display.badge("completed", "sent"), display.exact(mail.sent_at))
    if mail.sealed_at is None:
        return display.two_lines(display.badge("queued", "collecting"), f"due {display.exact(mail.due_at)}")
    return display.two_lines(display.badge("late", f"try {mail.tries}"), f"again {display.exact(mail.due_at)}")


@admin.register(NoticeMail)
class NoticeMailAdmin(KeysetAdmin):
    section = RECORDS
    place = 16
    summary = "Mails about what failed and recovered: sent, or waiting"
    list_display = ("rule_name", "totals", "state", "began")
    fields = ("rule_name", "state", "began", "ended", "recipients", "message_id", "tries", "body")
    totals = display.column("tells", lambda mail: total_words(mail.counts))
    state = display.column("state", mail_state)
    began = display.moment_column("began_at", "from")
    ended = display.moment_column("ended_at", "to")
    recipients = display.column("taken for", lambda mail: display.joined(mail.reached) or display.NOTHING)
    body = display.column("text", lambda mail: format_html('<pre class="k1-text">{}</pre>', notice_mails.text(mail)))


# No pages of the menu: for those who look for what notices do inside.
@admin.register(NoticeReader)
class NoticeReaderAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "lease_expires_at", "cursor_id")
    show_full_result_count = False


@admin.register(FailingSchedule)
class FailingScheduleAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "failed_at")
    fields = ("failed_at",)
    show_full_result_count = False
