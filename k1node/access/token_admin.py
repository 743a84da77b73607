"""Tokens on the console: what was issued, used and revoked, to read. None is shown that could be used."""

from django.contrib import admin

from k1node.access.models import DeniedToken, RefreshToken, TokenFamily
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import KeysetAdmin


@admin.register(TokenFamily)
class TokenFamilyAdmin(KeysetAdmin):
    section = RECORDS
    place = 30
    summary = "Sign-ins of services with a key, and the tokens that came of them"
    nothing = "No service has exchanged a key for tokens."
    list_display = ("family_id", "of", "created", "expires", "ended", "revoked_reason")
    list_display_links = ("family_id",)
    list_select_related = ("key",)
    fields = ("family_id", "of", "created", "expires", "ended", "revoked_reason")
    of = display.column("key", lambda row: display.link(row.key))
    created = display.moment_column("created_at", "signed in")
    expires = display.moment_column("expires_at", "last token ends")
    ended = display.moment_column("revoked_at", "revoked")


@admin.register(RefreshToken)
class RefreshTokenAdmin(KeysetAdmin):
    list_display = ("token", "may", "created", "used", "expires")
    list_display_links = ("token",)
    list_select_related = ("family",)
    fields = ("token", "may", "created", "used", "expires")
    token = display.column("token", lambda row: f"#{row.pk} of {row.family}")
    may = display.column("scopes", lambda row: display.joined(row.scopes))
    created = display.moment_column("created_at", "issued")
    used = display.moment_column("used_at", "used")
    expires = display.moment_column("expires_at", "expires")


@admin.register(DeniedToken)
class DeniedTokenAdmin(KeysetAdmin):
    section = RECORDS
    place = 31
    summary = "Access tokens that were revoked before their end"
    nothing = "None is refused before its end."
    list_display = ("jti", "issuer", "denied", "expires")
    list_display_links = ("jti",)
    fields = ("jti", "issuer", "denied", "expires")
    denied = display.moment_column("denied_at", "revoked")
    expires = display.moment_column("expires_at", "would have ended")
