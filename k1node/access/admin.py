"""API keys on the console: made here and shown once, revoked, never read again."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html

from k1node.access import keys
from k1node.access.models import ApiKey
from k1node.access.scopes import DESCRIPTIONS
from k1node.lib import admin_display as display
from k1node.lib.admin_base import SET_UP, ConsoleAdmin


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """What a new key needs; keys.issue() makes it."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {text}") for scope, text in DESCRIPTIONS.items()],
        widget=forms.CheckboxSelectMultiple,
        help_text="Give no more than the service needs: a key can be replaced, but not changed.",
    )
    requests_per_hour = forms.IntegerField(
        required=False, min_value=1, max_value=10_000_000, help_text="Empty: the node's own limit."
    )

    class Meta:
        model = ApiKey
        fields = ("name", "scopes", "requests_per_hour", "expires_at")
        labels = {"expires_at": "Expires at (UTC)"}
        help_texts = {"name": "Who uses it: billing-service.", "expires_at": "Empty: never."}

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():
            raise forms.ValidationError("Must be printable characters.")
        return name

    def clean_expires_at(self) -> Any:
        at = self.cleaned_data["expires_at"]
        if at is not None and at <= timezone.now():
            raise forms.ValidationError("Must lie ahead.")
        return at


def state(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= timezone.now() else "active"


@admin.register(ApiKey)
class ApiKeyAdmin(ConsoleAdmin):
    section = SET_UP
    place = 20
    summary = "What services sign in with"
    list_display = ("key", "hint_text", "stands", "scope_list", "limit", "used", "expires", "revoked")
    list_display_links = ("key",)
    search_fields = ("name",)
    show_full_result_count = False
    sortable_by = ()
    actions = ("revoke",)
    shown = ("key", "hint_text", "stands", "scope_list", "limit", "created", "used", "expires", "revoked")
    key = display.column("name", lambda row: row.name)
    hint_text = display.column("key", lambda row: display.code(f"…{row.hint}"))
    stands = display.column("state", lambda row: display.badge(state(row)))
    scope_list = display.column("scopes", lambda row: display.joined(row.scopes))
    limit = display.column(
        "requests an hour", lambda row: f"{row.requests_per_hour:,}" if row.requests_per_hour else "the node's limit"
    )
    created = display.moment_column("created_at", "made")
    used = display.column("last used", lambda row: display.both(row.last_used_at) if row.last_used_at else "never")
    expires = display.column("expires", lambda row: display.both(row.expires_at) if row.expires_at else "never")
    revoked = display.moment_column("revoked_at", "revoked")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # A key that exists has nothing to edit, so no form of it has a field.
        return super().get_form(request, obj, change=change, **kwargs | ({"form": ApiKeyForm} if obj is None else {}))

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return self.shown if obj else ApiKeyForm.Meta.fields

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return self.shown if obj else ()

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        nothing_to_save = dict.fromkeys(("show_save", "show_save_and_continue", "show_save_and_add_another"), False)
        return super().change_view(request, object_id, form_url, nothing_to_save | (extra_context or {}))

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        # A revoked key stays, so that what it did can be told from what others did.
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            return
        values = form.cleaned_data
        key, text = keys.issue(
            values["name"],
            values["scopes"],
            requests_per_hour=values["requests_per_hour"],
            expires_at=values["expires_at"],
        )
        for field in key._meta.concrete_fields:
            setattr(obj, field.attname, getattr(key, field.attname))
        obj._state.adding = False
        self.message_user(
            request,
            format_html(
                'The new key, shown this once and kept nowhere: <code class="k1-secret">{}</code> '
                "Copy it now; without it, make another.",
                text,
            ),
            messages.WARNING,
        )

    @admin.action(description="Revoke (at once, for good)", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        names = [str(key) for key in queryset if keys.revoke(key)]
        skipped = queryset.count() - len(names)
        if names:
            self.message_user(request, f"Revoked {len(names)}: {', '.join(names)}", messages.SUCCESS)
        if skipped:
            self.message_user(request, f"Skipped {skipped}: revoked before", messages.WARNING)
