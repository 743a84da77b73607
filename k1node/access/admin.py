"""API keys on the console: made here and shown once, replaced, revoked, never read again; and what came of them."""

from copy import deepcopy
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html
from django.views.decorators.http import require_http_methods

from k1node.access import addresses, keys, operators, token_admin
from k1node.access.models import ApiKey, KeyState
from k1node.access.scopes import DESCRIPTIONS, covered
from k1node.lib import admin_display as display
from k1node.lib.admin_base import SET_UP, ConsoleAdmin
from k1node.lib.errors import K1NodeError


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """What a new key needs; keys.issue() makes it."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {text}") for scope, text in DESCRIPTIONS.items()],
        widget=forms.CheckboxSelectMultiple,
        help_text="Give no more than the service needs.",
    )
    allowed_cidrs = forms.CharField(
        label="Networks",
        required=False,
        max_length=4000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Where it may be used from, one a line: 10.0.0.0/8. Empty: from everywhere.",
    )
    requests_per_hour = forms.IntegerField(
        required=False, min_value=1, max_value=10_000_000, help_text="Empty: the node's own limit."
    )

    class Meta:
        model = ApiKey
        fields = ("name", "scopes", "allowed_cidrs", "requests_per_hour", "expires_at")
        labels = {"expires_at": "Expires at (UTC)"}
        help_texts = {"name": "Who uses it: billing-service.", "expires_at": "Empty: never."}

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():
            raise forms.ValidationError("Must be printable characters.")
        return name

    def clean_allowed_cidrs(self) -> list[str]:
        networks, problems = addresses.read(self.cleaned_data["allowed_cidrs"].replace(",", " ").split())
        if problems:
            raise forms.ValidationError([f"{each.message}. {each.suggestion or ''}".strip() for each in problems])
        return networks

    def clean_expires_at(self) -> Any:
        at = self.cleaned_data["expires_at"]
        if at is not None and at <= timezone.now():
            raise forms.ValidationError("Must lie ahead.")
        return at


OVERLAPS = {"0": "not at all: it ends at once", "3600": "1 hour", "86400": "1 day", "604800": "7 days"}


class RotateForm(forms.Form):
    overlap = forms.ChoiceField(
        label="How long the old key stays valid",
        choices=list(OVERLAPS.items()),
        initial="86400",
        widget=forms.RadioSelect,
        help_text="The time in which whoever uses it takes up the new one.",
    )


class RevokeForm(forms.Form):
    reason = forms.CharField(
        max_length=500,
        required=False,
        help_text="Shown to whoever wonders, and kept with the key.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )


__all__ = ["ApiKeyAdmin", "token_admin"]


def state(key: ApiKey) -> str:
    """Return the badge of the key's state; that of a replaced key says until when it is valid."""
    word = key.state(timezone.now())
    return display.badge(
        word, f"rotated, valid until {display.exact(key.expires_at)}" if word == KeyState.ROTATED else ""
    )


def replacement(key: ApiKey) -> str:
    return display.link(key.replaced_by) if key.replaced_by else display.NOTHING


def _givable(request: HttpRequest) -> frozenset[str]:
    """Return what a key may do that this person makes and sees: no more than he may himself."""
    return covered(operators.scopes_of(request.user))


@admin.register(ApiKey)
class ApiKeyAdmin(ConsoleAdmin):
    section = SET_UP
    place = 20
    summary = "What services sign in with"
    change_form_template = "admin/access/apikey/change_form.html"
    list_display = ("key", "hint_text", "stands", "scope_list", "places", "limit", "used", "expires", "revoked")
    list_display_links = ("key",)
    list_select_related = ("replaced_by",)
    search_fields = ("name", "public_id")
    show_full_result_count = False
    sortable_by = ()
    actions = ("revoke",)
    shown = (
        "key",
        "public_id",
        "hint_text",
        "stands",
        "scope_list",
        "places",
        "limit",
        "created",
        "created_by",
        "used",
        "last_used_ip",
        "expires",
        "revoked",
        "revoked_reason",
        "replaced",
    )
    key = display.column("name", lambda row: row.name)
    hint_text = display.column("key", lambda row: display.code(f"…{row.hint}"))
    stands = display.column("state", state)
    scope_list = display.column("scopes", lambda row: display.joined(row.scopes))
    places = display.column("networks", lambda row: display.joined(row.allowed_cidrs) or "everywhere")
    limit = display.column(
        "requests an hour", lambda row: f"{row.requests_per_hour:,}" if row.requests_per_hour else "the node's limit"
    )
    created = display.moment_column("created_at", "made")
    used = display.column("last used", lambda row: display.both(row.last_used_at) if row.last_used_at else "never")
    expires = display.column("expires", lambda row: display.both(row.expires_at) if row.expires_at else "never")
    revoked = display.moment_column("revoked_at", "revoked")
    replaced = display.column("replaced by", replacement)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        asking = require_http_methods(["GET", "HEAD", "POST"])
        return [
            path("<int:pk>/rotate/", view(asking(self.rotate_view)), name="access_apikey_rotate"),
            path("<int:pk>/revoke/", view(asking(self.revoke_view)), name="access_apikey_revoke"),
            *super().get_urls(),
        ]

    def rotate_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask how long the old key is to stay valid, put a new one in its place and show that, this once."""
        row = self._changeable(request, pk)
        if not covered(row.scopes) <= _givable(request):
            raise PermissionDenied
        form = RotateForm(request.POST if request.method == "POST" else None, label_suffix="")
        if form.is_bound and form.is_valid():
            overlap = timedelta(seconds=int(form.cleaned_data["overlap"]))
            try:
                new, text = keys.rotate(row, overlap=overlap, by=request.user.get_username())
            except K1NodeError as error:
                self.message_user(request, f"{error.message}.", messages.WARNING)
                return HttpResponseRedirect(display.page_of(row))
            self._show_once(request, text)
            return HttpResponseRedirect(display.page_of(new))
        return self._ask(request, row, form, "rotate", f"Replace {row}", "Make the new key")

    def revoke_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask why the key is to end, and end it."""
        row = self._changeable(request, pk)
        form = RevokeForm(request.POST if request.method == "POST" else None, label_suffix="")
        if form.is_bound and form.is_valid():
            if keys.revoke(row, reason=form.cleaned_data["reason"]):
                self.message_user(request, f"Revoked {row}: it and its tokens are refused from now on.")
            else:
                self.message_user(request, f"{row} was revoked before.", messages.WARNING)
            return HttpResponseRedirect(display.page_of(row))
        return self._ask(request, row, form, "revoke", f"Revoke {row}", "Revoke it")

    def _changeable(self, request: HttpRequest, pk: int) -> ApiKey:
        row = ApiKey.objects.filter(pk=pk).first()
        if not self.has_change_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404
        return row

    def _ask(
        self, request: HttpRequest, row: ApiKey, form: forms.Form, verb: str, title: str, button: str
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "badge": state(row),
            "opts": self.opts,
            "form": form,
            "verb": verb,
            "button": button,
            "back": display.page_of(row),
        }
        return TemplateResponse(request, "admin/access/apikey/ask.html", context)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # A key that exists has nothing to edit, so no form of it has a field.
        if obj is not None:
            return super().get_form(request, obj, change=change, **kwargs)
        form = super().get_form(request, obj, change=change, **kwargs | {"form": ApiKeyForm})
        # Of its own: the field is shared with the forms of everybody else.
        scopes: Any = deepcopy(form.base_fields["scopes"])
        form.base_fields["scopes"] = scopes
        scopes.choices = [choice for choice in scopes.choices if choice[0] in _givable(request)]
        return form

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return self.shown if obj else ApiKeyForm.Meta.fields

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return self.shown if obj else ()

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        nothing_to_save = dict.fromkeys(("show_save", "show_save_and_continue", "show_save_and_add_another"), False)
        row = self.get_object(request, object_id)
        verbs = {
            "can_rotate": row is not None
            and row.state(timezone.now()) == KeyState.ACTIVE
            and covered(row.scopes) <= _givable(request),
            "can_revoke": row is not None and row.revoked_at is None,
        }
        return super().change_view(request, object_id, form_url, nothing_to_save | verbs | (extra_context or {}))

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
            allowed_cidrs=values["allowed_cidrs"],
            by=request.user.get_username(),
        )
        for field in key._meta.concrete_fields:
            setattr(obj, field.attname, getattr(key, field.attname))
        obj._state.adding = False
        self._show_once(request, text)

    def _show_once(self, request: HttpRequest, text: str) -> None:
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
