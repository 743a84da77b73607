"""The hold on the console: the record of all of them, the page that begins one, the button that releases it."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_http_methods, require_POST

from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import KeysetAdmin
from k1node.lib.clock_time import database_now
from k1node.lib.errors import K1NodeError
from recovery import admin_words as words
from recovery import holds
from recovery.admin_forms import UntilForm
from recovery.models import Hold
from recovery.records import By

CHANGE = "recovery.change_hold"


@admin.register(Hold)
class HoldAdmin(KeysetAdmin):
    section = RECORDS
    place = 14
    summary = "When nothing was to start, and who wanted it"
    nothing = "Nothing has been held yet."
    list_display = ("began", "created_by", "reason", "planned", "ended", "ended_by")
    began = display.moment_column("since", "since")
    planned = display.column("until", lambda row: display.both(row.until) if row.until else "released")
    ended = display.moment_column("ended_at", "ended")

    def get_urls(self) -> list[URLPattern]:
        start = require_http_methods(["GET", "HEAD", "POST"])(self.start_view)
        return [
            path("start/", self.admin_site.admin_view(start), name="recovery_hold_start"),
            path("release/", self.admin_site.admin_view(require_POST(self.release_view)), name="recovery_hold_release"),
            *super().get_urls(),
        ]

    def start_view(self, request: HttpRequest) -> HttpResponse:
        """Ask why and for how long everything is to be held, and do it."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        form = UntilForm(request.POST if request.method == "POST" else None, without_end="until somebody releases it")
        if form.is_bound and form.is_valid():
            return self._hold(request, form)
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": "Hold everything",
            "form": form,
            "button": "Hold everything",
            "back": reverse("admin:index"),
        }
        return TemplateResponse(request, "admin/recovery/hold/start.html", context)

    def _hold(self, request: HttpRequest, form: UntilForm) -> HttpResponse:
        now = database_now()
        by = By(request.user.get_username(), form.cleaned_data["reason"])
        try:
            holds.hold(by, until=form.end(now), now=now)
        except K1NodeError as error:
            self.message_user(request, words.refusal("the hold", error), messages.WARNING)
        else:
            # The banner says the rest.
            self.message_user(request, "Nothing starts from now on, on any node. What runs, runs on.")
        return HttpResponseRedirect(reverse("admin:index"))

    def release_view(self, request: HttpRequest) -> HttpResponse:
        """Let tasks start again and return to the page whose banner had the button."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        try:
            row = holds.release(words.by(request), now=database_now())
        except K1NodeError as error:
            self.message_user(request, words.refusal("the hold", error), messages.WARNING)
        else:
            said = format_html("Released what {} held: tasks start again.", row.created_by)
            self.message_user(request, said)
        back = request.POST.get("back", "")
        ours = url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure())
        return HttpResponseRedirect(back if ours else reverse("admin:index"))
