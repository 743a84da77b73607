"""User apps on the console: registered here, their secret shown once, their tokens seen and ended but never read.

django-oauth-toolkit registers these classes for its models (OAUTH2_PROVIDER in the settings).
"""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import models, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from oauth2_provider.generators import generate_client_secret
from oauth2_provider.models import Application, refresh_token_expire_timedelta

from k1node.access.oauth import redirects, tokens
from k1node.audit import trail
from k1node.audit.admin_log import AuditedAdmin
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS, SET_UP, ConsoleAdmin
from k1node.lib.admin_paging import KeysetAdmin

KINDS = (
    (Application.CLIENT_CONFIDENTIAL, "A service: its server can keep a secret"),
    (Application.CLIENT_PUBLIC, "A program on people's own computers or in their browsers: it cannot"),
)


class ApplicationForm(forms.ModelForm):  # type: ignore[type-arg]
    """What an application needs; everything else is the same for all of them."""

    client_type = forms.ChoiceField(label="Kind", choices=KINDS, widget=forms.RadioSelect)

    class Meta:
        model = Application
        fields = ("name", "client_type", "redirect_uris")
        labels = {"redirect_uris": "Redirect URIs"}
        help_texts = {
            "name": "What people read when it asks them for access.",
            "redirect_uris": "Where people may be sent back to, one a line, exactly as the app writes it. "
            "https, or http://127.0.0.1/… (any port) for a program on the user's computer.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].required = True
        self.fields["redirect_uris"].required = True
        self.instance.authorization_grant_type = Application.GRANT_AUTHORIZATION_CODE
        # The toolkit knows whole schemes only; clean_redirect_uris says where http may lead.
        self.instance.get_allowed_schemes = lambda: ["https", "http"]

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():
            raise forms.ValidationError("Must be printable characters.")
        return name

    def clean_redirect_uris(self) -> str:
        addresses: list[str] = self.cleaned_data["redirect_uris"].split()
        problems = [problem for problem in map(redirects.problem_with, addresses) if problem]
        if problems:
            raise forms.ValidationError(problems)
        return "\n".join(addresses)


class ApplicationAdmin(AuditedAdmin, ConsoleAdmin):
    section = SET_UP
    place = 21
    summary = "Apps that people sign in to with their account here"
    nothing = "No app yet. Add one to let people give it access in their name."
    form = ApplicationForm
    list_display = ("app", "client", "kind", "made")
    list_display_links = ("app",)
    search_fields = ("name", "client_id")
    show_full_result_count = False
    sortable_by = ()
    ordering = ("name", "pk")
    actions = ("new_secret",)
    app = display.column("app", str)
    client = display.column("client id", lambda row: display.code(row.client_id))
    kind = display.column("kind", lambda row: "service" if is_service(row) else "program, without a secret")
    made = display.moment_column("created", "made")

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return ("name", "client", "kind", "redirect_uris", "made") if obj else ApplicationForm.Meta.fields

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return ("client", "kind", "made") if obj else ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        if obj is not None:
            form.base_fields.pop("client_type", None)  # a service's secret does not become a program's
        return form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        # Saving hashes it. A program has one too, which nobody learns: without any, an empty one would do.
        secret = obj.client_secret
        obj.user = obj.user or request.user
        super().save_model(request, obj, form, change)
        if not change:
            self._show(request, [(obj, secret)])

    @admin.action(description="Make a new secret (the old one ends at once)", permissions=["change"])
    def new_secret(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        services = [application for application in queryset if is_service(application)]
        made = []
        for application in services:
            secret = application.client_secret = generate_client_secret()
            with transaction.atomic():
                application.save(update_fields=["client_secret", "updated"])
                trail.record("application.secret_replaced", tokens.target_of(application))
            made.append((application, secret))
        self._show(request, made)
        if skipped := queryset.count() - len(services):
            self.message_user(request, f"Skipped {skipped}: programs have no secret", messages.WARNING)

    def _show(self, request: HttpRequest, made: list[tuple[Any, str]]) -> None:
        for application, secret in made:
            shown = format_html("The client id of {}: {} ", application, display.code(application.client_id))
            if is_service(application):
                shown += format_html(
                    'Its secret, shown this once and kept nowhere: <code class="k1-secret">{}</code> '
                    "Copy it now; without it, make another.",
                    secret,
                )
            self.message_user(request, shown, messages.WARNING)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # Its tokens go with it, too many to list; nobody needs the right to delete those one by one.
        listed = [format_html("{} and every access given to it", application) for application in objs]
        return listed, {"applications": len(listed)}, set(), []


def is_service(application: Any) -> bool:
    return bool(application.client_type == Application.CLIENT_CONFIDENTIAL)


class GivenAdmin(KeysetAdmin):
    """What an app was given: rows of the toolkit, to be ended here but never read."""

    search_fields = ("user__username", "application__name", "application__client_id")
    list_select_related = ("user", "application")
    list_display = ("number", "app", "person", "may", "stands", "given", "ends")
    list_display_links = ("number",)
    fields = ("number", "app", "person", "may", "stands", "given", "ends")
    actions = ("revoke",)
    number = display.column("number", lambda row: f"#{row.pk}")
    app = display.column("app", lambda row: str(row.application))
    person = display.column("person", lambda row: row.user.get_username() if row.user else "nobody")
    may = display.column("may", lambda row: scopes_of(row))
    stands = display.column("state", lambda row: display.badge(state(row)))
    given = display.moment_column("created", "given")
    ends = display.column("ends", lambda row: display.both(end_of(row)))

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.delete_{self.opts.model_name}")

    @admin.action(description="Revoke (at once, for good)", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        done = [row for row in queryset if state(row) != "revoked"]
        for row in done:
            tokens.revoke(row)
        if done:
            self.message_user(request, f"Revoked {len(done)}", messages.SUCCESS)
        if skipped := len(queryset) - len(done):
            self.message_user(request, f"Skipped {skipped}: revoked before", messages.WARNING)


class RefreshTokenAdmin(GivenAdmin):
    section = RECORDS
    place = 40
    summary = "Who has given access to which app; revoking one ends it"
    nothing = "Nobody has given an app access."

    def get_list_select_related(self, request: HttpRequest) -> tuple[str, ...]:
        return ("user", "application", "access_token")


class AccessTokenAdmin(GivenAdmin):
    """What apps call the API with, for an hour each; not in the menu, the refresh tokens stand for them."""

    nothing = "No app has a token."


class GrantAdmin(GivenAdmin):
    """Codes on their way to a token, for a minute; not in the menu."""


def state(row: Any) -> str:
    if getattr(row, "revoked", None):
        return "revoked"
    end = end_of(row)
    return "active" if end and end > timezone.now() else "expired"


def end_of(row: Any) -> Any:
    """Return when the row's token is of no more use; None if it is not now."""
    if hasattr(row, "expires"):
        return row.expires
    # A refresh token lasts as long beyond the access token beside it.
    return row.access_token.expires + refresh_token_expire_timedelta() if row.access_token else None


def scopes_of(row: Any) -> str:
    holder = row if hasattr(row, "scope") else row.access_token
    if holder is None:
        return display.NOTHING
    return format_html_join(", ", "{}", ((scope,) for scope in holder.scope.split()))
